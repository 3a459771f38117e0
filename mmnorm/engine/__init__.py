"""Runs: what the tools share. Nothing here is needed to use mmnorm with mmdet's or mmseg's own tools."""
from .config import add_common_arguments, load_config, stop
from .processes import die_with_parent, on_first_rank, start_distributed
from .record import RunRecordHook, write_json
from .runner import Runner, forbid_running_checkpoints

__all__ = [
    'RunRecordHook', 'Runner', 'add_common_arguments', 'die_with_parent', 'forbid_running_checkpoints', 'load_config',
    'on_first_rank', 'start_distributed', 'stop', 'write_json'
]
