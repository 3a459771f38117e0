#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: torchrun.sh SCRIPT USAGE POSITIONALS [POSITIONAL ...] NUM_PROCESSES [ARGS]
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
script=$1 usage=$2 positionals=$3
shift 3
case ${1:-} in
-h | --help)
    echo "usage: dist_${script%.py}.sh $usage"
    exec python "$tools/$script" --help
    ;;
esac
if (($# <= positionals)) || [[ ! ${*:positionals+1:1} =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: dist_${script%.py}.sh $usage" >&2
    exit 2
fi
targets=("${@:1:positionals}")
processes=${*:positionals+1:1}
shift $((positionals + 1))

# Whatever is missing is said once, here, and not by each process
python "$tools/$script" "${targets[@]}" "$@" --check "$processes"
nodes=(--standalone)
if ((${NNODES:-1} > 1)); then
    nodes=(--nnodes "$NNODES" --node_rank "${NODE_RANK:-0}" --master_addr "${MASTER_ADDR:-127.0.0.1}"
        --master_port "${PORT:-29500}")
fi
exec python -m torch.distributed.run "${nodes[@]}" --nproc_per_node "$processes" \
    "$tools/$script" "${targets[@]}" "$@" --launcher pytorch
