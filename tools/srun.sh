#!/usr/bin/env bash
# What slurm_train.sh and slurm_test.sh share: srun.sh SCRIPT USAGE POSITIONALS PARTITION JOB_NAME [ARGS]
# GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS come from the environment.
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
script=$1 usage=$2 positionals=$3
shift 3
case ${1:-} in
-h | --help)
    echo "usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=] slurm_${script%.py}.sh $usage"
    exec python "$tools/$script" --help
    ;;
esac
if (($# < positionals)); then
    echo "usage: slurm_${script%.py}.sh $usage" >&2
    exit 2
fi
if ! command -v srun >/dev/null; then
    echo "error: srun is not on this machine's PATH; without Slurm use tools/dist_${script%.py}.sh" >&2
    exit 1
fi
partition=$1 job=$2
shift 2
gpus=${GPUS:-8}
per_node=$((gpus < ${GPUS_PER_NODE:-8} ? gpus : ${GPUS_PER_NODE:-8}))
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
exec srun --partition="$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$tools/$script" "$@" --launcher slurm
