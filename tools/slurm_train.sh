#!/usr/bin/env bash
# Train a config under Slurm: a GPU for each task.
exec "$(dirname "${BASH_SOURCE[0]}")/srun.sh" train.py 'PARTITION JOB_NAME CONFIG [arguments of tools/train.py]' 3 "$@"
