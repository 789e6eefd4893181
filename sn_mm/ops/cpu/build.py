"""Compiles the kernels at first use, into a folder that nobody else may write to.

The library's name is a hash of all that it depends on: source, flags, compiler and kind of CPU. So
a home that machines of several kinds share holds one library for each, and an old one is never
taken for a new one. Only a complete library gets its name: a compile that was killed leaves a
temporary file, which nothing loads. A digest of the library stands behind it in its file: one that
a crash of the machine or a full disk has damaged would kill Python, and is compiled anew instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from ...atomic import atomic_path

SOURCE = Path(__file__).with_name('kernels.c')
FLAGS = (
    '-std=gnu11', '-O3', '-fno-math-errno', '-fno-trapping-math', '-fPIC', '-shared'
)  # fmt: skip
SECONDS = 120
"""After which a compiler is given up."""


class BuildError(Exception):
    """Why the kernels cannot be had on this machine, in one line."""


def load() -> ctypes.CDLL:
    """The kernels, compiled where they are not in the cache yet.

    Raises:
        BuildError: No compiler, it fails, or the cache cannot be written to or is not private.
    """
    try:
        compiler = _compiler()
        version = _run([*compiler, '--version']).split('\n')[0]
        key = '\n'.join((SOURCE.read_text('utf-8'), *FLAGS, *compiler, version, _cpu()))
        path = _private_folder() / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.so'
        if not os.path.lexists(path):
            _compile(compiler, path)
        _check_private(path, stat.S_ISREG)
        if not _is_whole(path):
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, ValueError) as error:  # no home folder; CC's quotes not closed
        raise BuildError(' '.join(str(error).split())) from error


def _compiler() -> list[str]:
    return shlex.split(os.environ.get('CC', '')) or ['cc']


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors='replace',
            timeout=SECONDS,
            env={**os.environ, 'LC_ALL': 'C'},
        )
    except FileNotFoundError as error:
        raise BuildError(f'there is no C compiler {command[0]!r}') from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f'{command[0]} took longer than {SECONDS} seconds') from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if 'error' in line), lines[0] if lines else '')
        raise BuildError(f'{command[0]} failed with status {done.returncode}: {said.strip()}')
    return done.stdout


def _cpu() -> str:
    """The CPU's instruction sets: ``-march=native`` compiles for all of them."""
    try:
        with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
            for line in file:
                if line.startswith(('flags', 'Features')):
                    return f'{platform.machine()} {line.partition(":")[2].strip()}'
    except OSError:
        pass
    return f'{platform.machine()} {platform.processor()}'


def _private_folder() -> Path:
    cache = os.environ.get('XDG_CACHE_HOME', '')
    root = Path(cache) if os.path.isabs(cache) else Path.home() / '.cache'
    folder = root / 'sn_mm' / 'cpu'
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    _check_private(folder, stat.S_ISDIR)
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise BuildError(f'all users may write to {parent}, above the cache of the kernels')
    return folder


def _check_private(path: Path, is_kind: Callable[[int], bool]) -> None:
    """Raises BuildError unless ``path``, no link, is this user's and nobody else's to write to."""
    status = path.lstat()
    if not is_kind(status.st_mode):
        raise BuildError(f'{path}, in the cache of the kernels, is a link or of the wrong kind')
    if status.st_uid != os.geteuid():
        raise BuildError(f'{path}, in the cache of the kernels, belongs to another user')
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f'{path}, in the cache of the kernels, may be written to by other users')


def _compile(compiler: list[str], path: Path) -> None:
    with atomic_path(path) as temporary:
        command = [*compiler, *FLAGS, '-o', str(temporary), str(SOURCE), '-lm']
        try:
            _run([*command, '-march=native'])
        except BuildError:  # some compilers for other CPUs than x86 have no such flag
            _run(command)
        temporary.chmod(0o700)  # whatever the umask
        with temporary.open('ab') as file:
            file.write(hashlib.sha256(temporary.read_bytes()).digest())


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    size = hashlib.sha256().digest_size
    return hashlib.sha256(content[:-size]).digest() == content[-size:]
