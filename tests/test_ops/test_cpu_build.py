"""How the CPU kernels get onto a machine: compiler, cache, threads, forks."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from sn_mm.ops import cpu
from sn_mm.ops.cpu import build
from sn_mm.ops.protocol import Parameters, Settings

ROOT = Path(build.__file__).parents[3]
ALL = Settings(('in', 'ln', 'bn'), 1e-5, 0)
# Without the packages' own imports: of torch, which takes seconds and has no part in it.
LOAD = f"""
import sys, types
for name in ('sn_mm', 'sn_mm.ops', 'sn_mm.ops.cpu'):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(ROOT)!r} + '/' + name.replace('.', '/')]
from sn_mm.ops.cpu import build
"""

needs_compiler = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f'no kernels: {cpu.unavailable()}'
)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of the kernels, in a fresh cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('CC', raising=False)
    return tmp_path / 'cache' / 'sn_mm' / 'cpu'


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Sets CC to a script of the lines given; the file ``runs`` gets a line for each compile."""

    def set_compiler(*lines: str) -> Path:
        script, runs = tmp_path / 'cc', tmp_path / 'runs'
        head = ['#!/bin/sh', f'[ "$1" = --version ] && exec cc --version; echo >> {runs}']
        script.write_text('\n'.join((*head, *lines, '')))
        script.chmod(0o755)
        runs.touch()
        monkeypatch.setenv('CC', str(script))
        return runs

    return set_compiler


QUICK = 'exec cc "$@" -O0'


def libraries(cache: Path) -> list[Path]:
    return list(cache.glob('[!.]*.so'))


# ---- the cache ----


@needs_compiler
def test_compiles_once_and_for_this_user_alone(cache, compiler):
    runs = compiler(QUICK)
    before = os.umask(0)
    try:
        build.load()
    finally:
        os.umask(before)
    build.load()
    assert len(runs.read_text().splitlines()) == 1
    (library,) = cache.iterdir()
    for path in (cache, library):
        assert path.stat().st_mode & 0o077 == 0 and path.stat().st_uid == os.geteuid()


@needs_compiler
def test_processes_that_start_together_all_get_the_kernels(cache, compiler):
    compiler(QUICK)
    command = [sys.executable, '-c', LOAD + 'build.load().sn_measure']
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [p.wait(60) for p in processes] == [0] * 4
    assert list(cache.iterdir()) == libraries(cache) and len(libraries(cache)) == 1


@needs_compiler
def test_a_killed_compile_leaves_nothing_that_is_loaded(cache, compiler):
    half_done = 'while [ "$1" != -o ]; do shift; done; head -c 5000 /bin/sh > "$2"'
    compiler(half_done, f'kill -9 {"$PPID"}; sleep 1')
    process = subprocess.run([sys.executable, '-c', LOAD + 'build.load()'])
    assert process.returncode == -signal.SIGKILL
    (part,) = cache.iterdir()
    assert part.stat().st_size == 5000 and part not in libraries(cache)

    compiler(QUICK)
    assert build.load().sn_measure
    assert len(libraries(cache)) == 1


@needs_compiler
def test_a_library_that_a_crash_damaged_is_compiled_anew(cache, compiler):
    """Cut short or full of zeros, it would kill Python with SIGBUS or SIGSEGV."""
    compiler(QUICK)
    command = [sys.executable, '-c', LOAD + 'build.load().sn_measure']
    subprocess.run(command, check=True)
    (library,) = libraries(cache)
    whole = library.read_bytes()
    for damaged in (b'', whole[:1000], whole[: len(whole) // 2], whole[:-1], bytes(len(whole))):
        library.write_bytes(damaged)
        subprocess.run(command, check=True)
        assert library.stat().st_size == len(whole)


@needs_compiler
def test_two_kinds_of_cpu_get_a_library_each(cache, compiler, monkeypatch):
    compiler(QUICK)
    build.load()
    monkeypatch.setattr(build, '_cpu', lambda: 'x86_64 fpu sse2')
    build.load()
    assert len(libraries(cache)) == 2


def test_the_kind_of_cpu_is_its_instruction_sets():
    cpuinfo = Path('/proc/cpuinfo')
    if not cpuinfo.exists():
        pytest.skip('no /proc/cpuinfo')
    assert build._cpu().startswith(platform.machine())
    assert all(word in cpuinfo.read_text() for word in build._cpu().split()[1:])


def test_a_cache_that_cannot_be_written_is_a_reason(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    with pytest.raises(build.BuildError, match='file'):
        build.load()


def test_no_home_is_a_reason(monkeypatch):
    def no_home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setenv('XDG_CACHE_HOME', 'not/absolute')
    monkeypatch.setattr(build.Path, 'home', no_home)
    with pytest.raises(build.BuildError, match='home directory'):
        build.load()


# ---- never code that others may have written ----


@pytest.fixture
def built(cache, compiler, monkeypatch):
    """A built library; whatever is loaded from now on is an error."""
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    compiler(QUICK)
    build.load()
    monkeypatch.setattr(ctypes, 'CDLL', lambda path: pytest.fail(f'loaded {path}'))
    return libraries(cache)[0]


@pytest.mark.parametrize('mode', [0o720, 0o702, 0o777])
def test_a_folder_that_others_may_write_to_is_refused(built, mode):
    built.parent.chmod(mode)
    with pytest.raises(build.BuildError, match='cpu, .* may be written to by other users'):
        build.load()


@pytest.mark.parametrize('mode', [0o720, 0o702])
def test_a_library_that_others_may_write_to_is_refused(built, mode):
    built.chmod(mode)
    with pytest.raises(build.BuildError, match='so, .* may be written to by other users'):
        build.load()


def test_a_folder_above_that_all_may_write_to_is_refused(built):
    above = built.parents[2]
    above.chmod(0o777)
    with pytest.raises(build.BuildError, match='all users may write to .*cache'):
        build.load()


def test_a_sticky_folder_above_is_no_danger(built, monkeypatch):
    built.parents[2].chmod(0o777 | stat.S_ISVTX)  # as /tmp
    loaded = []
    monkeypatch.setattr(ctypes, 'CDLL', loaded.append)
    build.load()
    assert loaded == [str(built)]


def test_a_linked_library_is_refused(built):
    built.rename(built.with_name('other'))
    built.symlink_to('other')
    with pytest.raises(build.BuildError, match='is a link'):
        build.load()


def test_a_linked_folder_is_refused(built):
    built.parent.rename(built.parent.with_name('other'))
    built.parent.symlink_to('other')
    with pytest.raises(build.BuildError, match='is a link'):
        build.load()


@pytest.mark.skipif(os.geteuid() != 0, reason='only root gives files away')
def test_what_belongs_to_another_user_is_refused(built):
    for path in (built, built.parent):
        os.chown(path, 12345, -1)
        with pytest.raises(build.BuildError, match='belongs to another user'):
            build.load()
        os.chown(path, 0, -1)


# ---- compilers ----


def test_no_compiler_is_a_reason(cache, monkeypatch):
    monkeypatch.setenv('CC', '/nowhere/cc -m64')
    with pytest.raises(build.BuildError, match="^there is no C compiler '/nowhere/cc'$"):
        build.load()


def test_the_backend_says_why_it_is_unavailable(cache, monkeypatch):
    monkeypatch.setenv('CC', '/nowhere/cc')
    assert cpu.unavailable.__wrapped__() == "there is no C compiler '/nowhere/cc'"


def test_a_compile_error_is_a_reason_in_one_line(cache, compiler):
    compiler('echo "In file included:" >&2; echo "k.c:1: error: no stdint.h" >&2; exit 3')
    with pytest.raises(build.BuildError, match='failed with status 3: k.c:1: error: no stdint.h$'):
        build.load()
    assert not list(cache.iterdir())


def test_a_compiler_that_hangs_is_given_up(cache, compiler, monkeypatch):
    compiler('exec sleep 60')
    monkeypatch.setattr(build, 'SECONDS', 0.3)
    start = time.monotonic()
    with pytest.raises(build.BuildError, match='longer than'):
        build.load()
    assert time.monotonic() - start < 20 and not list(cache.iterdir())


def test_quotes_in_cc_that_are_not_closed_are_a_reason(cache, monkeypatch):
    monkeypatch.setenv('CC', "cc '-O2")
    with pytest.raises(build.BuildError, match='quotation'):
        build.load()


def test_cc_is_not_given_to_a_shell(cache, tmp_path, monkeypatch):
    monkeypatch.setenv('CC', f'/nowhere/cc; touch {tmp_path}/shell')
    with pytest.raises(build.BuildError, match='no C compiler'):
        build.load()
    assert not (tmp_path / 'shell').exists()


REFUSES = 'for a; do case $a in {}) echo "error: unknown $a" >&2; exit 1;; esac; done'


@needs_compiler
def test_a_compiler_without_openmp_builds_kernels_with_threads(cache, compiler):
    compiler(REFUSES.format('-fopenmp*'), QUICK)
    assert in_process(THREADS, COUNT='2') == '2 threads\n'


@needs_compiler
def test_a_compiler_that_does_not_know_this_cpu_builds_for_any(cache, compiler):
    runs = compiler(REFUSES.format('-march=native'), QUICK)
    assert build.load().sn_measure
    assert len(runs.read_text().splitlines()) == 2


def step(dtype: torch.dtype) -> list[torch.Tensor]:
    """Both passes on odd sizes and both formats, as a list."""
    torch.manual_seed(0)
    results = []
    for shape, layout in (
        ((3, 37, 5, 7), torch.contiguous_format),
        ((3, 37, 5, 7), torch.channels_last),
        ((2, 3, 50, 43), torch.contiguous_format),
        ((2, 70, 9, 9), torch.channels_last),
    ):
        x, dy = (torch.randn(2, *shape) + 0.5).to(dtype).unbind()
        x, dy = (t.contiguous(memory_format=layout) for t in (x, dy))
        parameters = Parameters(*torch.randn(2, 3), *torch.randn(2, shape[1]))
        moments = cpu.measure(x, ALL, None, True)
        sums, gradients = cpu.reduce(dy, x, moments, parameters, ALL, True)
        results += [*moments.values(), cpu.normalize(x, moments, parameters, ALL), *gradients]
        total = x.numel() // shape[1]
        results.append(cpu.propagate(dy, x, moments, sums, parameters, ALL, total))
    return results


def scaled(bits: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """All values of a 16-bit dtype times 64 weights: by the kernels, and by torch."""
    x = bits.view(dtype)
    weight = torch.cat((torch.ones(1), torch.randn(63).exp()))
    plain = Settings(('bn',), 0.0, 0)
    batch = torch.tensor([[[0.0]], [[1.0]]]).expand(2, 1, 64).contiguous()
    moments = {'in': batch.expand(2, len(x), 64).contiguous(), 'bn': batch}
    parameters = Parameters(torch.zeros(1), torch.zeros(1), weight, None)
    return cpu.normalize(x, moments, parameters, plain), (x.float() * weight).to(dtype)


@needs_compiler
@pytest.mark.parametrize('flags', ['', '-mno-avx512f', '-mno-avx512f -mno-f16c', '-mno-avx'])
def test_every_width_of_vectors_computes_the_same(cache, flags, monkeypatch):
    """Also the conversions of float16 in software, bit by bit for all values."""
    if flags and platform.machine() != 'x86_64':
        pytest.skip("flags of x86's compilers")
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    expected = [step(dtype) for dtype in dtypes]
    monkeypatch.setenv('CC', f'cc {flags}')
    monkeypatch.setattr(build, 'FLAGS', tuple(f for f in build.FLAGS if f != '-O3') + ('-O1',))
    library = build.load()
    cpu.declare(library)
    monkeypatch.setattr(cpu, '_kernels', library)
    for dtype, results in zip(dtypes, expected):
        for actual, result in zip(step(dtype), results):
            rtol = max(2 * torch.finfo(actual.dtype).eps, 2e-5)
            torch.testing.assert_close(actual, result, rtol=rtol, atol=2e-5)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(-1, 1).expand(-1, 64).contiguous()
    for dtype in (torch.bfloat16, torch.float16):
        actual, result = scaled(bits, dtype)
        torch.testing.assert_close(actual, result, rtol=0, atol=0, equal_nan=True)


# ---- threads and forks ----

THREADS = """
import os, torch
from sn_mm.ops import cpu
from sn_mm.ops.protocol import Settings
assert cpu.unavailable() is None, cpu.unavailable()
torch.set_num_threads(int(os.environ['COUNT']))
x = torch.randn(4, 64, 64, 64)
tasks = lambda: len(os.listdir('/proc/self/task'))
first = tasks()
cpu.measure(x, Settings(('in',), 1e-5, 0), None, True)
ours = tasks()
torch.nn.functional.batch_norm(x, None, None, training=True)
assert tasks() == ours, 'torch started threads of its own beside ours'
print(1 + ours - first, 'threads')
"""


def in_process(program: str, **environment: str) -> str:
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), **environment}
    command = [sys.executable, '-c', program]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, timeout=100
    ).stdout


@needs_compiler
@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='threads are counted in /proc')
@pytest.mark.parametrize('count', [1, 3])
def test_the_pool_of_threads_is_torchs_own(count):
    assert in_process(THREADS, COUNT=str(count)) == f'{count} threads\n'


WITHOUT_TORCH = """
import array, struct
library = build.load()
x, moments = array.array('f', range(40000)), array.array('f', [0, 0])
address = lambda a: a.buffer_info()[0]
values = [address(x), 0, 0, address(moments), *[0] * 16, 1, 1, 40000, 0, 0, 4, 1, *[0] * 7]
assert library.sn_measure(struct.pack('20P10q3dP', *values)) == 0
print(*moments)
"""


@needs_compiler
def test_without_an_openmp_runtime_one_thread_does_everything(cache, compiler):
    compiler(QUICK)
    mean, var = map(float, in_process(LOAD + WITHOUT_TORCH).split())
    assert mean == 19999.5 and var == pytest.approx((40000**2 - 1) / 12, rel=1e-6)


class Measured(Dataset):
    """Instance moments of fixed numbers, taken in the worker."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        x = torch.arange(4 * 64 * 64 * 64, dtype=torch.float32).view(4, 64, 64, 64).sin()
        return cpu.measure(x, ALL, None, True)['in']


@needs_compiler
def test_workers_forked_after_the_pool_was_used_do_not_hang():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = Measured()[0]
        loader = DataLoader(
            Measured(), None, num_workers=2, timeout=60, multiprocessing_context='fork'
        )
        assert all(torch.equal(moments, expected) for moments in loader)
    finally:
        torch.set_num_threads(before)
