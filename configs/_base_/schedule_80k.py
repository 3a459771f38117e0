"""mmseg's schedule of 80k iterations and its runtime."""

_base_ = [
    f'{__import__("mmseg").__path__[0]}/.mim/configs/_base_/{part}.py'
    for part in ('schedules/schedule_80k', 'default_runtime')
]

custom_imports = dict(imports=['mmnorm'], allow_failed_imports=False)
