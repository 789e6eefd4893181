#!/usr/bin/env bash
# Set up, then run the tests:
#
#     bash tools/run_tests.sh                     the everyday ones
#     bash tools/run_tests.sh --all               all
#     bash tools/run_tests.sh tests/test_layer.py -k batch_norm      arguments go to pytest
#
# The first two distribute the files over the cores, eight at most, in their order: the slow ones of
# tests/checks and tests/test_cli come first, so that no core waits for one at the end. Options may
# follow --all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(bash tools/setup_env.sh)
case ${1:-} in
    '') tests=(-m 'not slow and not every_command') ;;
    --all) tests=("${@:2}") ;;
    *) exec "$python" -m pytest "$@" ;;
esac
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the cores are taken
share=(-n $((cores < 8 ? cores : 8)) --dist loadfile --no-loadscope-reorder)
exec "$python" -m pytest "${share[@]}" "${tests[@]}"
