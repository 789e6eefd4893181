#!/usr/bin/env bash
# Set up, then run the tests. Arguments go to pytest: bash tools/run_tests.sh -k layer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(bash tools/setup_env.sh)
exec "$python" -m pytest "$@"
