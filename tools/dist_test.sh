#!/usr/bin/env bash
# Evaluate a checkpoint on several processes of this machine: a GPU each, or over gloo on the CPU where there is none.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment, the same command on each.
exec "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh" test.py \
    'CONFIG CHECKPOINT NUM_PROCESSES [arguments of tools/test.py]' 2 "$@"
