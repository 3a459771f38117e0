#!/usr/bin/env bash
# Diagnose the BN statistics of a checkpoint on several processes of this machine: a GPU each, or over gloo on the CPU.
exec "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh" diagnose.py \
    'CONFIG CHECKPOINT NUM_PROCESSES [arguments of tools/diagnose.py]' 2 "$@"
