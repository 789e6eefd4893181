"""Triton's kernels compile for GPUs, without one: no spills, and 16 bytes at a time.

bash tools/run_tests.sh tests/checks/test_kernels.py
bash tools/run_tests.sh tests/checks/test_kernels.py --every-kernel --record
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sn_mm.output.markdown import markdown_table

from .record import machine, write_record

triton = pytest.importorskip('triton', '3.0', 'the kernels need Triton 3.0')

ROOT = Path(__file__).parents[2]
ALGEBRA = '(N, C) algebra'  # of the kernels that do not read the input
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope='module')
def compiled(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """A record for each kernel, variant and GPU."""
    every = request.config.getoption('every_kernel')
    env = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    env['PYTHONPATH'] = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    command = [sys.executable, '-m', 'checks.kernels', *(['--every'] if every else [])]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    if request.config.getoption('record'):
        assert every, '--record needs --every-kernel: the table is of all variants'
        write_record('gpu.md', 'kernels', tables(records))
    return records


def tables(records: list[dict[str, Any]]) -> str:
    """Variants by GPU; for sm_90 the most registers and the narrowest access of each kernel."""
    counts = Counter(r['target'] for r in records)
    spilled = Counter(r['target'] for r in records if r['spilled'])
    most = {k: max(r['registers'] for r in records if r['target'] == k) for k in counts}
    by_target = [
        [target, str(count), str(spilled[target]), str(most[target])]
        for target, count in counts.items()
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for r in records:
        if r['target'] == 'sm_90':
            format_ = 'channels_last' if r['channels_last'] else 'contiguous'
            of = (r['dtype'], format_) if r['dtype'] else (ALGEBRA, '')
            groups.setdefault((r['kernel'], *of), []).append(r)
    rows = []
    for (kernel, *of), group in sorted(groups.items()):
        numbers = [max(r[key] for r in group) for key in ('registers', 'spilled', 'shared')]
        numbers += [min(r[key] for r in group) for key in ('load', 'store')]
        rows.append([f'`{kernel}`', ' '.join(of).strip(), *map(str, (len(group), *numbers))])
    head = ['kernel', 'input', 'variants', 'registers', 'bytes spilled', 'bytes shared']
    return '\n\n'.join(
        [
            f'Triton {triton.__version__}. {machine()}.',
            markdown_table(['GPU', 'variants', 'that spill', 'registers, at most'], by_target),
            'For sm_90:',
            markdown_table([*head, 'widest load', 'widest store'], rows),
        ]
    )


def test_every_kernel_compiles_for_a_gpu_of_each_family(compiled: list[dict[str, Any]]) -> None:
    from sn_mm.ops.triton import kernels

    for target in ('sm_90', 'sm_100', 'gfx942', 'gfx1100'):
        assert {r['kernel'] for r in compiled if r['target'] == target} == {*kernels.__all__}


def test_no_kernel_spills_registers(compiled: list[dict[str, Any]]) -> None:
    assert [r for r in compiled if r['spilled']] == []


def test_inputs_are_read_and_written_by_16_bytes(compiled: list[dict[str, Any]]) -> None:
    """The shapes are those of 16-byte rows: a channel, or the channels of a position."""
    reading = [r for r in compiled if r['dtype']]
    assert reading and [r for r in reading if r['load'] != 16] == []
    writing = [r for r in compiled if r['kernel'] in ('apply', 'grad_input')]
    assert writing and [r for r in writing if r['store'] != 16] == []
