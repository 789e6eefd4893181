"""The tests of the layer and of its kernels that use the device, by pytest."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from .no_hypothesis import stand_in_for_hypothesis
from .processes import ROOT
from .step import Failed

MODULES = ('tests/test_layer.py', 'tests/test_functional.py', 'tests/test_ops/test_*.py')


def run(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    forced = os.environ.get('SN_MM_BACKEND', '')
    # Tests of the kernels call them, whatever backend is forced: once is enough.
    selection = Selection(device.type, kernels=not forced)
    stand_in_for_hypothesis()
    modules = sorted(path for pattern in MODULES for path in ROOT.glob(pattern))
    missing = {path: packages for path in modules if (packages := missing_packages(path))}
    for path, packages in missing.items():
        selection.not_run[str(path.relative_to(ROOT))] = f'{", ".join(packages)} not installed'
    paths = [str(path) for path in modules if path not in missing]
    options = ['-q', '-m', 'not slow', '-p', 'no:cacheprovider', '--rootdir', str(ROOT)]
    code = pytest.main([*options, *paths], plugins=[selection])
    yield {
        'backend': forced or 'default',
        **selection.outcomes,
        'failures': selection.failures,
        'not_run': selection.not_run,
    }
    if selection.failures:
        raise Failed(
            f'{len(selection.failures)} of {selection.total} tests fail, '
            f'the first: {selection.failures[0]}'
        )
    if code:
        raise Failed(f'pytest ended with {pytest.ExitCode(code).name}')


class Selection:
    """A pytest plugin that keeps the tests of one device and counts how they end.

    Args:
        device: 'cpu' or 'cuda': tests with the fixture ``device`` run there only.
        kernels: Also those of modules that choose a ``DEVICE`` themselves.
    """

    def __init__(self, device: str, kernels: bool) -> None:
        self.device, self.kernels = device, kernels
        self.outcomes = {'passed': 0, 'failed': 0, 'skipped': 0}
        self.failures: list[str] = []
        self.not_run: dict[str, str] = {}

    @property
    def total(self) -> int:
        return sum(self.outcomes.values())

    def pytest_configure(self, config: Any) -> None:
        if not config.pluginmanager.hasplugin('timeout'):
            config.addinivalue_line('markers', 'timeout(seconds): of the plugin pytest-timeout')

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        kept = [item for item in items if self._keeps(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def _keeps(self, item: Any) -> bool:
        parameters = item.callspec.params if hasattr(item, 'callspec') else {}
        if 'device' in parameters:
            return str(parameters['device']) == self.device
        return self.kernels and hasattr(item.module, 'DEVICE')

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.skipped:
            self.not_run[report.nodeid] = _reason(report)
        if report.when == 'call' or report.outcome != 'passed':
            self.outcomes[report.outcome] += 1
        if report.failed:
            self.failures.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.outcomes['failed'] += 1
            self.failures.append(report.nodeid)
        elif report.skipped:
            self.not_run[report.nodeid] = _reason(report)


def _reason(report: Any) -> str:
    return str(report.longrepr[-1]).removeprefix('Skipped: ')


def missing_packages(module: Path) -> list[str]:
    """Packages that ``module`` imports at its top level and that are not installed.

    ``pytest.importorskip`` names its package itself.
    """
    source = module.read_text(encoding='utf-8')
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split('.')[0])
    local = {path.stem for folder in (module.parent, ROOT / 'tests') for path in folder.iterdir()}
    optional = set(re.findall(r"importorskip\('(\w+)", source))
    others = names - local - optional - set(sys.modules)
    return sorted(name for name in others if find_spec(name) is None)
