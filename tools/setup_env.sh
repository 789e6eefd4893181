#!/usr/bin/env bash
# Install the packages for development and the demo, and print the python to use:
#
#     python=$(bash tools/setup_env.sh)
#
# The packages of constraints.txt and this checkout go into .venv in the repository root, or into
# the environment of SN_MM_PYTHON if that names a python (SN_MM_PYTHON=python: the active one).
# mmcv's operators are compiled once; the wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/sn_mm.
# Progress goes to stderr. A run without changes since the last one ends at once.
# A run may be interrupted at any moment: the next one continues.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

stage=''
say() {
    stage=$*
    printf 'setup_env: %4d s  %s\n' "$SECONDS" "$stage" >&2
}
die() {
    printf 'setup_env: %s\n' "$*" >&2
    exit 1
}

# --- Which python ------------------------------------------------------------------------------

# The pinned numpy needs 3.11; sn_mm itself runs on older ones.
suits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' &> /dev/null; }

if [[ -n ${SN_MM_PYTHON:-} ]]; then
    facts=$("$SN_MM_PYTHON" -c 'if True:
        import sys
        print(sys.version.split()[0], sys.prefix, sys.executable, sep="\n")' 2> /dev/null) ||
        die "SN_MM_PYTHON=$SN_MM_PYTHON is not a python that runs"
    { read -r version && read -r env && read -r python; } <<< "$facts"
    suits "$python" ||
        die "SN_MM_PYTHON=$SN_MM_PYTHON is Python $version; the pinned packages need 3.11 or newer"
    [[ -w $env ]] || die "SN_MM_PYTHON=$SN_MM_PYTHON: no permission to write to $env"
    lock=$env
else
    env=$root/.venv
    python=$env/bin/python
    lock=$root
fi
stamp=$env/sn_mm-setup.stamp
log=$env/sn_mm-setup.log

# --- Ready already? ----------------------------------------------------------------------------

fingerprint() {
    local files=(constraints.txt pyproject.toml setup.py tools/setup_env.sh tools/misc/mend_packages.py)
    { echo "$root" && "$python" --version && cat "${files[@]}"; } | sha256sum
}
is_ready() { [[ -x $python && -f $stamp && $(< "$stamp") == $(fingerprint) ]]; }
finish_if_ready() {
    if is_ready; then
        echo "$python"
        exit
    fi
}

finish_if_ready
exec 9< "$lock"
flock -n 9 || { say 'waiting for another set-up of this environment' && flock 9; }
finish_if_ready

# --- The environment ---------------------------------------------------------------------------

for base in "$python" python3 python3.11 python3.12 python3.13; do
    ! suits "$base" || break
done
suits "$base" || die 'Python 3.11 or newer is needed, as python3 or python3.11 on the PATH'
cxx=${CXX:-c++}
compiler=$("$cxx" --version 2> /dev/null) ||
    die "no C++ compiler '$cxx', which mmcv's operators need: install gcc, or set CXX to another"

on_exit() {
    local status=$?
    kill %% 2> /dev/null || true
    if ((status >= 128)); then
        printf 'setup_env: interrupted while %s; run it again to continue\n' "$stage" >&2
    elif ((status != 0)); then
        printf 'setup_env: failed while %s; the end of %s:\n' "$stage" "$log" >&2
        tail -n 12 "$log" >&2
    fi
}

if [[ $env == "$root/.venv" ]]; then
    suits "$python" || rm -rf "$env"
    mkdir -p "$env"
fi
# An empty stamp is a set-up under way, or one that was interrupted.
interrupted=false
[[ ! -e $stamp || -s $stamp ]] || interrupted=true
: > "$stamp"
: > "$log"
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if $interrupted && suits "$python"; then
    # pip writes INSTALLER after all files of a package: without it the package is incomplete.
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for package in "$site"/*.dist-info; do
        [[ -f $package/INSTALLER ]] || rm -rf "$package"
    done
fi
if [[ $env == "$root/.venv" ]]; then
    say "making .venv with $("$base" --version)"
    "$base" -m venv "$env" &>> "$log"
fi

pip=("$python" -m pip --disable-pip-version-check --no-input)
install=("${pip[@]}" install --progress-bar off --no-build-isolation -c constraints.txt)
say 'installing torch'
"${install[@]}" setuptools wheel ninja psutil numpy torch &>> "$log"

# Packages that do not need mmcv are installed while its operators compile.
"${install[@]}" mmengine mmdet mmsegmentation ftfy regex mmpretrain torchvision timm \
    -e '.[demo,docs,export,test]' &>> "$log" &
rest=$!

# --- mmcv's operators --------------------------------------------------------------------------

cache=${XDG_CACHE_HOME:-$HOME/.cache}/sn_mm
building=$cache/building
mmcv=$(sed -n 's/^mmcv==\([^ ]*\).*/\1/p' constraints.txt)
compiler=$(printf %s "${compiler%%$'\n'*}" | tr -cs 'A-Za-z0-9.' -)
facts=$("$python" - 2>> "$log" << 'EOF'
import os, platform, sys, torch
from torch.utils import cpp_extension

print(f'torch-{torch.__version__}-{sys.implementation.cache_tag}-{platform.machine()}')
nvcc = os.path.join(cpp_extension.CUDA_HOME or '', 'bin', 'nvcc')
if torch.version.cuda and os.access(nvcc, os.X_OK):
    gpus = {'%d%d' % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    print('-'.join([f'cuda{torch.version.cuda}', *sorted(gpus)]))
else:
    print('cpu')
print(' '.join(f'-I{path}' for path in cpp_extension.include_paths()))
EOF
)
{ read -r abi && read -r target && read -r includes; } <<< "$facts"
includes+=" $("$python" -c 'import sysconfig; print("-I" + sysconfig.get_path("include"))')"

# A locally built wheel must not come from or go to pip's own cache, which does not look at torch.
build() {
    rm -rf "$building/tmp" && mkdir -p "$building/tmp" &&
        env "$@" MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" TMPDIR="$building/tmp" \
            "${pip[@]}" wheel --progress-bar off --no-deps --no-build-isolation --no-cache-dir \
            -c constraints.txt -w "$building/wheel" mmcv &>> "$log"
}
cpu=(FORCE_CUDA=0 CUDA_VISIBLE_DEVICES=)

# All of mmcv's C++ files include torch/types.h: compiled once, with the flags that the build uses,
# it takes most of the work out of each of them. A flag that differs is an error, not a slow build.
build_precompiled() {
    local header=$building/torch_types.h flags='-O2 -g0 -fPIC'
    echo '#include <torch/types.h>' > "$header"
    # shellcheck disable=SC2086
    "$cxx" -x c++-header $flags $includes -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H \
        -DTORCH_EXTENSION_NAME=_ext "$header" -o "$header.gch" &>> "$log" &&
        build "${cpu[@]}" CFLAGS="$flags -include $header -Winvalid-pch -Werror=invalid-pch"
}
build_plain() { build "$@" CFLAGS='-O2 -g0 -fPIC -w'; }

mkdir -p "$cache"
exec 8< "$cache"
flock -n 8 || { say 'waiting for another build of mmcv' && flock 8; }
wheel_dir() { echo "$cache/mmcv-$mmcv-$abi-$target-$compiler"; }
if [[ $target != cpu && ! -d $(wheel_dir) ]]; then
    rm -rf "$building" && mkdir "$building"
    say "compiling mmcv's operators for CUDA: tens of minutes, once"
    if build_plain FORCE_CUDA=1; then
        mv "$building/wheel" "$(wheel_dir)"
    else
        say "CUDA operators did not compile, see $log: taking the CPU ones, which refuse GPU tensors"
        target=cpu
    fi
fi
if [[ ! -d $(wheel_dir) ]]; then
    rm -rf "$building" && mkdir "$building"
    say "compiling mmcv's operators: about 4 minutes on 2 cores, once"
    build_precompiled || {
        say "the precompiled header does not work with $cxx: plain build, about 10 minutes on 2 cores"
        build_plain "${cpu[@]}"
    }
    mv "$building/wheel" "$(wheel_dir)"
fi
rm -rf "$building"

# --- The rest ----------------------------------------------------------------------------------

say 'installing the toolboxes'
wait $rest
"${install[@]}" --no-deps --force-reinstall "$(wheel_dir)"/mmcv-*.whl &>> "$log"
# mmaction2 asks for a second OpenCV, which takes the place of the first, and for a video reader.
"${install[@]}" --no-deps mmaction2 &>> "$log"
"${install[@]}" -e '.[det,seg]' &>> "$log"
"$python" -c 'import cv2' &>> "$log" || {
    say 'no libGL: taking the headless OpenCV'
    "${install[@]}" --no-deps --force-reinstall opencv-python-headless &>> "$log"
}
mended=$("$python" tools/misc/mend_packages.py 2>> "$log")
[[ -z $mended ]] || say "$mended"
say 'checking the imports'
"$python" -c 'import mmcv.ops, mmdet, mmseg, timm, sn_mm' &>> "$log"

fingerprint > "$stamp.new"
mv "$stamp.new" "$stamp"
hint=''
[[ ! -f $env/bin/activate ]] || hint="; to have it as python in this shell: source $env/bin/activate"
say "ready$hint"
echo "$python"
