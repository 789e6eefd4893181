#!/usr/bin/env bash
# Trains as a slurm job of GPUS processes, GPUS_PER_NODE on each machine.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] [PYTHON=python] \\" >&2
    echo "    $0 PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2
    exit 2
fi
per_node=${GPUS_PER_NODE:-8}

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"

exec srun -p "$1" --job-name="$2" \
    --gres="gpu:$per_node" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$tools/train.py" "$3" --launcher slurm "${@:4}"
