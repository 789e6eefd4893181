"""Fixtures and settings of all tests."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # read when Triton is first imported
# Inductor compiles in the process itself: tiny graphs are not worth starting others.
os.environ['TORCHINDUCTOR_COMPILE_THREADS'] = '1'
DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']

SN_MM = Path(find_spec('sn_mm').origin).parent
# The layer needs torch alone. A test of what else there is says so and skips where it is missing.
OPTIONAL = {
    'cv2', 'expecttest', 'hypothesis', 'matplotlib', 'mlxtend', 'mmaction', 'mmcv', 'mmdet',
    'mmengine', 'mmpretrain', 'mmseg', 'numpy', 'onnx', 'onnxruntime', 'onnxscript', 'rich',
    'skimage', 'timm', 'torchvision', 'triton', 'yaml',
}  # fmt: skip


def positive_int(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup('checks', 'size of the checks in tests/checks').addoption
    add('--trials', type=positive_int, metavar='N',
        help='random trials of synchronization: seeds 0 to N - 1 (40)')  # fmt: skip
    add('--kills', type=positive_int, metavar='N',
        help='kills of each training that is resumed (2)')  # fmt: skip
    add('--every-config', action='store_true', help='all ready-made configs, not a few of them')
    add('--every-kernel', action='store_true',
        help='all variants of the kernels compiled, for all GPUs')  # fmt: skip
    add('--record', action='store_true', help='write the results into docs/')


@contextmanager
def skipping_what_is_not_installed() -> Iterator[None]:
    try:
        yield
    except (ModuleNotFoundError, KeyError, pytest.Collector.CollectError) as error:
        cause = error.__cause__ if isinstance(error, pytest.Collector.CollectError) else error
        missing = missing_package(cause)
        absent = missing.split('.')[0] in OPTIONAL and find_spec(missing.split('.')[0]) is None
        if absent and not needed_by_sn_mm(cause):
            pytest.skip(f'{missing} is not installed', allow_module_level=True)
        raise


def missing_package(error: BaseException | None) -> str:
    """The package that an import, mmengine's reader of configs or a registry of it has missed."""
    if isinstance(error, KeyError):
        named = re.match(r'\W*(\w+)\.\w+ is not in the ', str(error))
    else:
        named = re.match(r'(\w+) is not installed, please install', str(error))
    missing = named[1] if named else getattr(error, 'name', None) or ''
    return {'mmsegmentation': 'mmseg', 'mmaction2': 'mmaction'}.get(missing, missing)


def needed_by_sn_mm(error: BaseException) -> bool:
    """Whether ``import sn_mm``, or a function of sn_mm, has imported what is missing: a fault.

    A module of sn_mm that a test imports may need a package, and so may what a test has another
    package read or build.
    """
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    while frames and frames[-1].co_filename.startswith('<frozen importlib'):
        frames.pop()
    ours = [code for code in frames if Path(code.co_filename).is_relative_to(SN_MM)]
    return frames[-1] in ours and any(
        code.co_name != '<module>' or code.co_filename == str(SN_MM / '__init__.py')
        for code in ours
    )


class Module(pytest.Module):
    """A test module, skipped where a package that it imports is not installed."""

    def collect(self) -> Any:
        with skipping_what_is_not_installed():
            return super().collect()


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> Module:
    return Module.from_parent(parent, path=module_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator:
    with skipping_what_is_not_installed():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator:
    with skipping_what_is_not_installed():
        return (yield)


@pytest.fixture(params=[*DEVICES[:-1], pytest.param(DEVICES[-1], marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_default_scope() -> Iterator[None]:
    """MMEngine keeps the default scope for the process: one test's is not to reach the next."""
    if 'mmengine' not in sys.modules:
        yield
        return
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


@pytest.fixture
def fresh_compiler() -> None:
    """torch.compile and torch.export keep a limited number of graphs, those of other tests too."""
    torch._dynamo.reset()
