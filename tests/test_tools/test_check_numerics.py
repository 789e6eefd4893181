"""tools/check_numerics.py: the bound holds, and what is beyond it is reported."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import check_numerics
from numerics.errors import QUANTITIES, measure, relative_error
from numerics.inputs import FORMATS, Case, cases
from numerics.layers import Layer, _backend, exact_sn, sn_layers
from sn_mm.ops import aten

ROOT = Path(__file__).parents[2]


SOME = [  # the others are in the quick run
    'offset 100000', 'scale 1e-06', 'offsets of 0.1 to 1e6 by image',
    'every second channel constant',
    'all values 0.1', 'one hot pixel of 1e6 on noise', 'float16 to 6e4', 'L = 1, offset 1e4',
    'C = 1, offset 1e4', 'one element in all',
]  # fmt: skip


@pytest.mark.parametrize('name', SOME)
def test_sn_is_as_exact_as_batch_norm(name):
    case = {case.name: case for case in cases(small=True)}[name]
    if 'float16' in name:
        try:
            torch.nn.BatchNorm2d(1)(torch.ones(2, 1, 2, 2).half())
        except RuntimeError as error:
            pytest.skip(f'BatchNorm fails too: {error}')
    for memory_format in FORMATS:
        for record in measure(case, memory_format, 1, sn_layers(with_triton=False)):
            assert max(record.shares.values()) <= 1, record


def test_the_judge_is_exact_and_has_every_quantity():
    x, dy = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    truth = exact_sn(x, dy)
    for quantity in QUANTITIES:
        assert truth[quantity].dtype == torch.float64
        assert relative_error(quantity, truth[quantity].float(), truth, dy) < 1e-7
        off = truth[quantity] + 1e-3 * truth[quantity].abs().max()
        assert relative_error(quantity, off, truth, dy) > 1e-5
        assert relative_error(quantity, off / 0, truth, dy) == torch.inf


def careless() -> Layer:
    """SN with variances as E[x^2] - E[x]^2 in float32."""

    def moments(x: Tensor, settings, running, training):
        found = aten.measure(x, settings, running, training)
        square = x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()
        found['bn'] = torch.stack([found['bn'][0], square.clamp(min=0).view(1, -1)])
        return found

    functions = {k: getattr(aten, k) for k in ('normalize', 'reduce', 'propagate')}
    return partial(_backend, SimpleNamespace(measure=moments, **functions))


def test_a_careless_variance_is_beyond_the_bound(monkeypatch, capsys):
    far = Case('offset', (2, 3, 8, 8), lambda x: x + 1e3)
    records = {r.quantity: r for r in measure(far, 'contiguous', 1, {'careless': careless()})}
    assert records['y'].shares['careless'] > 1
    monkeypatch.setattr(check_numerics, 'cases', lambda small: [far])
    monkeypatch.setattr(check_numerics, 'sn_layers', lambda with_triton: {'careless': careless()})
    monkeypatch.setattr(sys, 'argv', ['check_numerics.py', '--quick'])
    with pytest.raises(SystemExit) as exit:
        check_numerics.main()
    assert exit.value.code == 1
    assert 'BEYOND: offset, contiguous, y, SN careless' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.every_command
def test_quick_run():
    command = [sys.executable, 'tools/check_numerics.py', '--quick']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'SN triton' in result.stdout and 'BEYOND' not in result.stdout
