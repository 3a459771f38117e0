#!/usr/bin/env bash
# What dist_*.sh share: torchrun.sh SCRIPT USAGE POSITIONALS [POSITIONAL ...] NUM_PROCESSES [ARGS]
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

exec python "$tools/$script" "${targets[@]}" "$@" --processes "$processes"
