#!/usr/bin/env bash
# Evaluate a checkpoint under Slurm: a GPU for each task.
exec "$(dirname "${BASH_SOURCE[0]}")/srun.sh" test.py 'PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]' \
    4 "$@"
