"""mmdet's runtime for schedules that count iterations."""

_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10000))
log_processor = dict(by_epoch=False)
