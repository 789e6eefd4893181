#!/usr/bin/env bash
# Check and measure SN on the GPU of this machine, in under 9 minutes:
#
#     bash tools/check_gpu.sh [--out DIR] [--quick]
#
# Needs a python with torch, triton and pytest: python3, or the one that PYTHON names. Nothing is
# installed and nothing fetched. Without a GPU the same steps run on the CPU, at small sizes and
# with one file of tests.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

missing=$("$python" -c 'if True:
    from importlib.util import find_spec
    print(*(name for name in ("torch", "pytest") if find_spec(name) is None))') || {
    echo "check_gpu: PYTHON=$python is not a python that runs" >&2
    exit 2
}
if [[ -n $missing ]]; then
    echo "check_gpu: not installed in $python: $missing" >&2
    exit 2
fi
export PYTHONPATH=$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}
exec "$python" -m checks.gpu.run "$@"
