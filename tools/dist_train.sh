#!/usr/bin/env bash
# Trains with GPUS processes on this machine, one of NNODES: with nccl on GPUs, with gloo on the CPU.
set -euo pipefail

if ! [[ ${2:-} =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: [NNODES=1] [NODE_RANK=0] [MASTER_ADDR=127.0.0.1] [PORT=...] [PYTHON=python] \\" >&2
    echo "    $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"

exec "${PYTHON:-python}" "$tools/train.py" "$1" --processes "$2" "${@:3}"
