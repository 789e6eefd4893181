#!/usr/bin/env bash
# Tests on every process of one or more machines: with nccl on GPUs, with gloo on CPUs.
set -euo pipefail

gpus=${3:-}
if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: [NNODES=1] [NODE_RANK=0] [MASTER_ADDR=127.0.0.1] [PORT=...] [PYTHON=python] \\" >&2
    echo "    $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    exit 2
fi

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
threads=$(($(getconf _NPROCESSORS_ONLN) / gpus))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}
export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"

if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then
    place=(--standalone --local_addr=127.0.0.1) # takes a free port and keeps it
else
    place=(
        --nnodes="${NNODES:-1}"
        --node_rank="${NODE_RANK:-0}"
        --master_addr="${MASTER_ADDR:-127.0.0.1}"
        --master_port="${PORT:-29500}"
    )
fi
exec "${PYTHON:-python}" "$tools/launch.py" "${place[@]}" --nproc_per_node="$gpus" \
    "$tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
