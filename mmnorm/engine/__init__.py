"""Runs: what the tools share. Nothing here is needed to use mmnorm with mmdet's or mmseg's own tools."""

from mmnorm.terminal import on_first_rank, progress

from .checkpoint import CheckpointError, check_exists, forbid_running_checkpoints, read_checkpoint
from .config import load_config, parse_config, stop
from .diagnose import Diagnosis
from .evaluation import (
    Evaluation,
    RequireWeightsHook,
    check_free,
    load_weights,
    open_evaluation,
    save_network,
)
from .lock import check_unused, training_lock
from .processes import die_with_parent, end_with_parent, leads_run, start_distributed
from .record import RunRecordHook, describe_device, versions
from .room import CheckRoomHook, check_room
from .runner import Runner, newest_checkpoint

__all__ = [
    'CheckpointError',
    'CheckRoomHook',
    'Diagnosis',
    'Evaluation',
    'RequireWeightsHook',
    'RunRecordHook',
    'Runner',
    'check_exists',
    'check_free',
    'check_room',
    'check_unused',
    'describe_device',
    'die_with_parent',
    'end_with_parent',
    'forbid_running_checkpoints',
    'leads_run',
    'load_config',
    'load_weights',
    'newest_checkpoint',
    'on_first_rank',
    'open_evaluation',
    'parse_config',
    'progress',
    'read_checkpoint',
    'save_network',
    'start_distributed',
    'stop',
    'training_lock',
    'versions',
]
