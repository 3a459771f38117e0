#!/usr/bin/env bash
# One step of tools/bn_statistics.py on several processes of this machine: a GPU each, or over gloo on the CPU.
exec "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh" bn_statistics.py \
    'COMMAND CONFIG CHECKPOINT NUM_PROCESSES [arguments of tools/bn_statistics.py COMMAND]' 3 "$@"
