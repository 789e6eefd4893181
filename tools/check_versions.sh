#!/usr/bin/env bash
# Run the tests with other versions of torch, Python and the toolboxes, one environment each, and
# write docs/versions.md:
#
#     bash tools/check_versions.sh [--quick] [ROW ...]
#
# Rows, all of them by default; --quick takes the first:
#
#   2.1.2 ... newest   the layer and MMEngine's wiring on that torch
#   onedl              the maintained forks of the toolboxes
#   mmpretrain         the packages of tools/setup_env.sh: recipes of mmpretrain and mmaction2
#
# Environments stay in ${XDG_CACHE_HOME:-~/.cache}/sn_mm/versions, several GB each. The Python of a
# row is taken from the PATH or from pyenv, or installed by uv if there is one. Progress goes to
# stderr. It ends with 1 if a test failed in one of the rows.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf 'check_versions: %4d s  %s\n' "$SECONDS" "$*" >&2; }
die() {
    printf 'check_versions: %s\n' "$*" >&2
    exit 2
}

ROWS=(2.1.2 2.4.1 2.6.0 2.9.1 2.13.0 newest onedl mmpretrain)
python_of() {
    case $1 in
        2.1.2) echo 3.9 ;;
        2.4.1) echo 3.10 ;;
        2.6.0 | onedl | mmpretrain) echo 3.11 ;;
        2.9.1) echo 3.12 ;;
        *) echo 3.13 ;;
    esac
}

rows=()
for argument; do
    case " ${ROWS[*]} --quick " in
        *" $argument "*) [[ $argument == --quick ]] && rows+=("${ROWS[0]}") || rows+=("$argument") ;;
        *) die "no row $argument; rows: ${ROWS[*]}, and --quick for the first of them" ;;
    esac
done
((${#rows[@]})) || rows=("${ROWS[@]}")
versions=${XDG_CACHE_HOME:-$HOME/.cache}/sn_mm/versions

# --- Environments --------------------------------------------------------------------------------

# make_environment ROW: an empty one, with the row's Python
make_environment() {
    local version env=$versions/$1 base
    version=$(python_of "$1")
    [[ ! -x $env/bin/python ]] || return 0
    mkdir -p "$versions"
    if command -v uv > /dev/null; then
        uv venv --quiet --seed --python "$version" "$env"
        return
    fi
    for base in "python$version" "$HOME/.pyenv/versions/$version".*/bin/python; do
        if "$base" -m venv --help &> /dev/null; then
            "$base" -m venv "$env"
            return
        fi
    done
    die "row $1 needs Python $version with venv, or uv to install it"
}

# install ROW PACKAGE ...
install() {
    local env=$versions/$1
    if command -v uv > /dev/null; then
        uv pip install --quiet --python "$env/bin/python" "${@:2}"
    else
        "$env/bin/python" -m pip --disable-pip-version-check install --quiet "${@:2}"
    fi
}

# mmengine finds configs with pkg_resources, which setuptools 82 dropped.
TESTS=('setuptools<82' pytest pytest-timeout hypothesis expecttest psutil)
install_row() {
    local python=$versions/$1/bin/python
    case $1 in
        2.1.2)  # was built for NumPy 1
            install "$1" torch==2.1.2 'numpy<2' 'opencv-python-headless<4.12' mmengine "${TESTS[@]}" ;;
        2.9.1)  # its Triton's interpreter fails with later ones
            install "$1" torch==2.9.1 'numpy<2.4' opencv-python-headless mmengine "${TESTS[@]}" ;;
        newest) install "$1" torch opencv-python-headless mmengine "${TESTS[@]}" ;;
        onedl)
            # Built before torch is there, or apart from it, onedl-mmcv has no operators.
            install "$1" torch==2.13.0 ninja wheel "${TESTS[@]}"
            MMCV_WITH_OPS=1 FORCE_CUDA=0 install "$1" --no-build-isolation onedl-mmcv
            install "$1" onedl-mmengine onedl-mmdetection onedl-mmsegmentation ftfy regex \
                opencv-python-headless ;;
        mmpretrain) SN_MM_PYTHON=$python bash tools/setup_env.sh > /dev/null ;;
        *) install "$1" "torch==$1" opencv-python-headless mmengine "${TESTS[@]}" ;;
    esac
    # mmengine asks for opencv-python, which takes the place of the headless one and wants libGL.
    "$python" -c 'import cv2' 2> /dev/null || {
        local version
        version=$("$python" -c 'from importlib.metadata import version as of
print(of("opencv-python-headless"))')
        install "$1" --no-deps --force-reinstall "opencv-python-headless==$version"
    }
}

# --- Tests ---------------------------------------------------------------------------------------

test_row() {
    local tests=(-m 'not slow')
    [[ $1 != mmpretrain ]] || tests=(tests/test_configs)
    PYTHONPATH=$root "$versions/$1/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}" \
        --junitxml="$versions/$1.xml" >&2
}

failed=0
for row in "${rows[@]}"; do
    say "$row: installing for Python $(python_of "$row")"
    make_environment "$row"
    install_row "$row"
    say "$row: testing"
    rm -f "$versions/$row.xml"
    test_row "$row" || failed=1
    [[ -f $versions/$row.xml ]] || die "row $row: the tests did not run to their end"
    "$versions/$row/bin/python" tools/versions/page.py "$row" "$versions" docs/versions.md
done
exit $failed
