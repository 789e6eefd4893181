"""SN's backends and torch's layers under one signature, and SN by its definition in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn
from triton_interpreter import why_unusable

from sn_mm import equations, functional
from sn_mm.equations import SCOPES
from sn_mm.ops import cpu, dispatch

EPS = 1e-5
MOMENTUM = 1.0  # running statistics become the batch's
LOGITS = torch.tensor([[0.5, -0.3, 0.1], [-0.2, 0.4, 0.0]])  # of means, of variances

Results = dict[str, Tensor]
"""'y', its gradients 'dx', 'dweight', 'dbias' and, of SN, 'dlogits' (2, 3); 'running mean' and
'running var' after the batch; 'y, eval' with these statistics.
"""

Layer = Callable[[Tensor, Tensor], Results]
"""From x and dy."""


def affine(channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias, (C,) each, the same for all layers."""
    noise = torch.randn(2, channels, generator=torch.Generator().manual_seed(0))
    return 1 + noise[0] / 4, noise[1] / 4


# --- SN -------------------------------------------------------------------------------------------


def sn_layers(with_triton: bool) -> dict[str, Layer]:
    """SN by backend; 'plain' is that of graphs, of second derivatives and of ``torch.func``.

    Triton's kernels run in its interpreter, and are left out where it cannot run them.
    """
    layers: dict[str, Layer] = {
        'aten': partial(_by_backend, 'aten'),
        'plain': partial(sn, equations.switch_norm),
    }
    if cpu.unavailable() is None:
        layers['cpu'] = partial(_by_backend, 'cpu')
    if with_triton and not why_unusable():
        layers['triton'] = partial(_by_backend, 'triton')
    return layers


def _by_backend(name: str, x: Tensor, dy: Tensor) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, '_FORCED', name)
        return sn(functional.switch_norm, x, dy)


def sn(function: Callable[..., Tensor], x: Tensor, dy: Tensor) -> Results:
    """SN by a function with the first thirteen arguments of ``functional.switch_norm``."""
    mean_weight, var_weight, weight, bias = leaves = _leaves(x.shape[1], torch.float32)
    running = torch.zeros(x.shape[1]), torch.ones(x.shape[1])

    def run(x: Tensor, training: bool) -> Tensor:
        return function(
            x, mean_weight, var_weight, *running, weight, bias, training, MOMENTUM, EPS,
            list(SCOPES), 0, None,
        )  # fmt: skip

    return _results(partial(run, training=True), partial(run, training=False), leaves, running,
                    x, dy)  # fmt: skip


def exact_sn(x: Tensor, dy: Tensor) -> Results:
    """By its definition in float64; evaluation has its running statistics rounded to float32."""
    leaves = _leaves(x.shape[1], torch.float64)
    running = torch.zeros(x.shape[1]).double(), torch.ones(x.shape[1]).double()

    def train(x: Tensor) -> Tensor:
        (y,), *moved = reference.switch_norm([x], *leaves, *running, momentum=MOMENTUM, eps=EPS)
        for kept, new in zip(running, moved):
            kept.copy_(new)
        return y

    def evaluate(x: Tensor) -> Tensor:
        kept = [t.float() for t in running]
        return reference.switch_norm([x], *leaves, *kept, training=False, eps=EPS).outputs[0]

    return _results(train, evaluate, leaves, running, x.double(), dy.double())


def _leaves(channels: int, dtype: torch.dtype) -> list[Tensor]:
    """Logits of means and of variances, weight and bias."""
    return [t.to(dtype, copy=True).requires_grad_() for t in (*LOGITS, *affine(channels))]


# --- torch's layers -------------------------------------------------------------------------------


def torch_layers(channels: int) -> dict[str, Layer]:
    """Those beside which SN stands, by short name."""
    groups = min(4, channels)
    return {
        'BN': partial(_module, nn.BatchNorm2d, channels, {'momentum': MOMENTUM}),
        'GN': partial(_module, partial(nn.GroupNorm, groups), channels, {}),
        'IN': partial(_module, nn.InstanceNorm2d, channels, {'affine': True}),
    }


def exact(layer: Layer) -> Layer:
    """The float64 truth of one of torch's layers: the same layer in float64."""
    return lambda x, dy: layer(x.double(), dy.double())


def _module(make: Callable[..., nn.Module], channels: int, args: dict[str, Any], x: Tensor,
            dy: Tensor) -> Results:  # fmt: skip
    module = make(channels, eps=EPS, **args)
    with torch.no_grad():
        for parameter, value in zip((module.weight, module.bias), affine(channels)):
            parameter.copy_(value)
    if x.dtype == torch.float64:
        module.double()
    elif isinstance(module, nn.GroupNorm):  # takes no half-precision input with float32 parameters
        module.to(x.dtype)
    tracked = isinstance(module, nn.BatchNorm2d)
    running = (module.running_mean, module.running_var) if tracked else None

    def evaluate(x: Tensor) -> Tensor:
        module.eval()
        if running and x.dtype == torch.float64:
            for buffer in running:
                buffer.copy_(buffer.float())
        return module(x)

    return _results(module, evaluate if tracked else None, [module.weight, module.bias], running,
                    x, dy)  # fmt: skip


# --- both -----------------------------------------------------------------------------------------


def _results(
    train: Callable[[Tensor], Tensor],
    evaluate: Callable[[Tensor], Tensor] | None,
    leaves: Any,
    running: tuple[Tensor, Tensor] | None,
    x: Tensor,
    dy: Tensor,
) -> Results:
    """By autograd. ``leaves``: (logits of means, of variances,) weight and bias."""
    x = x.detach().requires_grad_()
    y = train(x)
    dx, *grads = torch.autograd.grad(y, (x, *leaves), dy)
    results = {'y': y.detach(), 'dx': dx, 'dweight': grads[-2], 'dbias': grads[-1]}
    if len(grads) == 4:
        results['dlogits'] = torch.stack(grads[:2])
    if running:
        results['running mean'], results['running var'] = (t.clone() for t in running)
    if evaluate:
        with torch.no_grad():
            results['y, eval'] = evaluate(x)
    return results
