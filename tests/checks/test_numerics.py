"""How exact SN is on hard inputs, beside torch's normalization layers.

    bash tools/run_tests.sh tests/checks/test_numerics.py --record

SN by every backend, BatchNorm, GroupNorm and InstanceNorm run on the same inputs (large offsets and
scales, constant channels, a hot pixel, half precision, single elements, long channels); outputs,
gradients and running statistics are compared with float64. The bound: SN's relative error is at
most twice BatchNorm's own, or 1e-6.

An ordinary run of the tests takes small inputs, a draw of each. For the record there are large ones
too, four draws of each, and Triton's kernels, in its interpreter, on the small ones: minutes. The
interpreter truncates to bfloat16, where a GPU rounds: there the bound is 2^-7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

import pytest
import torch
from torch import Tensor

from sn_mm.output.markdown import markdown_table

from .numerics.errors import PEERS, QUANTITIES, Record, measure, relative_error
from .numerics.inputs import FORMATS, Case, cases
from .numerics.layers import EPS, exact_sn, sn, sn_layers
from .record import machine, write_record

DRAWS = 4  # of the noise, for the record


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'case' in metafunc.fixturenames:
        sizes = ('small', 'large') if metafunc.config.getoption('record') else ('small',)
        inputs = [(size, case) for size in sizes for case in cases(small=size == 'small')]
        ids = [f'{size}, {case.name}' for size, case in inputs]
        metafunc.parametrize(('size', 'case'), inputs, ids=ids)


@pytest.fixture(scope='module')
def records(request: pytest.FixtureRequest) -> Iterator[dict[str, list[Record]]]:
    """All that was measured, by size of the inputs."""
    records: dict[str, list[Record]] = {'small': [], 'large': []}
    yield records
    if request.config.getoption('record'):
        write_records(records)


@pytest.mark.timeout(0)
def test_sn_is_as_exact_as_batch_norm(
    size: str, case: Case, records: dict[str, list[Record]], pytestconfig: pytest.Config
) -> None:
    if case.dtype == torch.float16:
        try:
            torch.nn.BatchNorm2d(1)(torch.ones(2, 1, 2, 2).half())
        except RuntimeError as error:  # torch 2.1
            pytest.skip(f'BatchNorm takes no float16 here: {error}')
    recorded = pytestconfig.getoption('record')
    layers = sn_layers(with_triton=recorded and size == 'small')
    draws = DRAWS if recorded else 1
    found = [record for k in FORMATS for record in measure(case, k, draws, layers)]
    records[size] += found
    beyond = [
        f'{record.memory_format}, {record.quantity}, SN {name}: error {record.errors[name]:.1e}, '
        f'{share:.2f} times the bound'
        for record in found
        for name, share in record.shares.items()
        if not share <= 1
    ]
    assert not beyond, '\n'.join(beyond)


def write_records(records: dict[str, list[Record]]) -> None:
    for size, found in records.items():
        shares = list(chain.from_iterable(record.shares.values() for record in found))
        within = sum(share <= 1 for share in shares)
        said = f'{within} of {len(shares)} comparisons are within the bound. {machine()}.'
        write_record('numerics.md', f'{size} inputs', f'{said}\n\n{shares_of_bound(found)}')
    for memory_format, quantities in (
        ('contiguous', ('y', 'dx', 'running var')),
        ('channels_last', ('y',)),
    ):
        tables = [errors_of(k, memory_format, records['large']) for k in quantities]
        write_record('numerics.md', memory_format, '\n\n'.join(tables))


def shares_of_bound(records: Sequence[Record]) -> str:
    """A row a quantity: each backend's largest error as a share of its bound, and the case."""

    def worst(quantity: str, name: str) -> str:
        found = max((r for r in records if r.quantity == quantity), key=lambda r: r.shares[name])
        return f'{found.shares[name]:.2f} ({found.case})'

    names = records[0].shares
    rows = [[quantity, *(worst(quantity, name) for name in names)] for quantity in QUANTITIES]
    return markdown_table(['share of the bound', *(f'SN {name}' for name in names)], rows)


def errors_of(quantity: str, memory_format: str, records: Iterable[Record]) -> str:
    """A row a case: the relative errors of all layers."""
    chosen = [r for r in records if (r.quantity, r.memory_format) == (quantity, memory_format)]
    names = chosen[0].shares
    rows = [
        [r.case, *(f'{r.errors[k]:.1e}' if k in r.errors else '-' for k in (*PEERS, *names))]
        for r in chosen
    ]
    head = [f'{quantity}, {memory_format}', *PEERS, *(f'SN {name}' for name in names)]
    return markdown_table(head, rows)


def test_the_judge_is_exact_and_has_every_quantity() -> None:
    x, dy = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    truth = exact_sn(x, dy)
    for quantity in QUANTITIES:
        assert truth[quantity].dtype == torch.float64
        assert relative_error(quantity, truth[quantity].float(), truth, dy) < 1e-7
        off = truth[quantity] + 1e-3 * truth[quantity].abs().max()
        assert relative_error(quantity, off, truth, dy) > 1e-5
        assert relative_error(quantity, off / 0, truth, dy) == torch.inf


def careless(
    x: Tensor, mean_weight: Tensor, var_weight: Tensor, running_mean: Tensor, running_var: Tensor,
    weight: Tensor, bias: Tensor, *rest: object,
) -> Tensor:  # fmt: skip
    """SN with variances as E[x^2] - E[x]^2 in float32."""
    means, squares = (
        torch.stack([t.mean(axes, True).expand_as(t) for axes in ((2, 3), (1, 2, 3), (0, 2, 3))], 4)
        for t in (x, x.square())
    )
    mean = means @ mean_weight.softmax(0)
    var = (squares - means.square()).clamp(min=0) @ var_weight.softmax(0)
    return (x - mean) / (var + EPS).sqrt() * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


@pytest.mark.parametrize(('offset', 'within'), [(0, True), (1e3, False)])
def test_a_careless_variance_is_beyond_the_bound_far_from_zero(offset: float, within: bool) -> None:
    case = Case('offset', (2, 3, 8, 8), lambda x: x + offset)
    records = measure(case, 'contiguous', 1, {'careless': partial(sn, careless)})
    shares = {record.quantity: record.shares['careless'] for record in records}
    assert (shares['y'] <= 1) is within
