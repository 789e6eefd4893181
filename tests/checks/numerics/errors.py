"""Relative errors of all layers on all inputs, and the bound that SN's are held to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .inputs import FORMATS, Case
from .layers import EPS, Layer, Results, affine, exact, exact_sn, torch_layers

FLOOR = 1e-6
TRUNCATED = 2**-7  # Triton's interpreter truncates to bfloat16, where a GPU rounds
# Of one channel BatchNorm's gradient is more exact than InstanceNorm's: a mean is kept in float32,
# and its rounding weighs sqrt(N) times as much over L values as over N L. SN, which mixes both, is
# held to the larger error of the two.
ALSO_IN = {('C = 1, offset 1e4', 'dx')}
QUANTITIES = (
    'y', 'dx', 'dweight', 'dbias', 'dlogits', 'running mean', 'running var', 'y, eval',
)  # fmt: skip
PEERS = ('BN', 'GN', 'IN')


class Record(NamedTuple):
    """One quantity on one case.

    Attributes:
        errors: By layer, the largest of the draws; a layer that refuses the input is absent.
        shares: By backend, SN's error over its bound: twice BatchNorm's own, at least 1e-6;
            elsewhere as ALSO_IN and TRUNCATED say.
    """

    case: str
    memory_format: str
    quantity: str
    errors: dict[str, float]
    shares: dict[str, float]


def measure(
    case: Case, memory_format: str, draws: int, backends: dict[str, Layer]
) -> Iterator[Record]:
    """The records of a case, one for each quantity."""
    peers = torch_layers(case.shape[1])
    errors: dict[str, dict[str, float]] = {quantity: {} for quantity in QUANTITIES}
    for x, dy in case.draw(draws):
        x = x.contiguous(memory_format=FORMATS[memory_format])
        truth = exact_sn(x, dy)
        for name, layer in (*peers.items(), *backends.items()):
            try:
                found = layer(x, dy)
            except ValueError:  # torch's layers, on too few values
                continue
            judge = exact(layer)(x, dy) if name in peers else truth
            for quantity, value in found.items():
                error = relative_error(quantity, value, judge, dy)
                errors[quantity][name] = max(errors[quantity].get(name, 0.0), error)
    for quantity, by_layer in errors.items():
        peer_errors = errors['y'] if quantity == 'dlogits' else by_layer  # no layer has logits
        judges = ('BN', 'IN') if (case.name, quantity) in ALSO_IN else ('BN',)
        bound = max(FLOOR, *(2 * peer_errors.get(peer, 0.0) for peer in judges))
        truncated = case.dtype == torch.bfloat16 and quantity in ('y', 'dx', 'y, eval')
        shares = {
            k: by_layer[k] / (max(bound, TRUNCATED) if truncated and k == 'triton' else bound)
            for k in backends
        }
        yield Record(case.name, memory_format, quantity, by_layer, shares)


def relative_error(quantity: str, found: Tensor, truth: Results, dy: Tensor) -> float:
    """The largest error against the largest exact value, or its counterpart where that cancels.

    - 'dlogits': against the sum of the sizes of the terms;
    - 'dweight' and 'dbias', which add up dy * xhat and dy: against the norm of the summands, where
      that is larger;
    - 'running mean': against the standard deviation, where that is larger;
    - an exact 0: 'dx' against dy / sqrt(eps), all else as it is.

    Infinite where ``found`` is not finite.
    """
    expected = truth[quantity]
    if not found.isfinite().all():
        return math.inf
    error = (found.double() - expected).abs()
    size = expected.abs().max().item()
    weight, bias = (t.double().view(-1, 1, 1) for t in affine(dy.shape[1]))
    summands = {'dbias': dy.double(), 'dweight': dy.double() * (truth['y'] - bias) / weight}
    if quantity == 'dlogits':  # of the means, of the variances
        terms = [(weight * t.sum((2, 3), keepdim=True)).abs().sum() for t in summands.values()]
        return (error / torch.stack(terms).clamp(min=1e-9)[:, None]).max().item()
    if quantity in summands:
        size = max(size, summands[quantity].square().sum((0, 2, 3)).sqrt().max().item())
    if quantity == 'running mean':
        size = max(size, truth['running var'].max().item() ** 0.5)
    if size < 1e-9:
        size = dy.abs().max().item() / EPS**0.5 if quantity == 'dx' else 1.0
    return error.max().item() / size
