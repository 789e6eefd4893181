"""SN's backends and torch's layers under one signature, and SN by its definition in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sn_mm import equations
from sn_mm.equations import Parameters, Running, Settings
from sn_mm.ops import aten, cpu, dense

EPS = 1e-5
MOMENTUM = 1.0  # running statistics become the batch's
LOGITS = torch.tensor([[0.5, -0.3, 0.1], [-0.2, 0.4, 0.0]])  # of means, of variances
AXES = {'in': (2, 3), 'ln': (1, 2, 3), 'bn': (0, 2, 3)}

Results = dict[str, Tensor]
"""'y', its gradients 'dx', 'dweight', 'dbias' and, of SN, 'dlogits' (2, 3); 'running mean' and
'running var' after the batch; 'y, eval' with these statistics.
"""

SIZES = 'sizes of dlogits'
"""In the truth about SN: the sums of the sizes of the terms of 'dlogits', (2, 1)."""

Layer = Callable[[Tensor, Tensor], Results]
"""From x and dy."""


def affine(channels: int) -> tuple[Tensor, Tensor]:
    """Weight and bias, (C,) each, the same for all layers."""
    noise = torch.randn(2, channels, generator=torch.Generator().manual_seed(0))
    return 1 + noise[0] / 4, noise[1] / 4


def _scopes(x: Tensor) -> tuple[str, ...]:
    """Those that SN mixes: an instance of one position has no statistics of its own."""
    return tuple(AXES) if x[0, 0].numel() > 1 else ('ln', 'bn')


def _start(channels: int, dtype: torch.dtype) -> Running:
    return Running(torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype),
                   torch.zeros((), dtype=torch.int64), MOMENTUM)  # fmt: skip


# --- SN -------------------------------------------------------------------------------------------


def sn_layers(with_triton: bool) -> dict[str, Layer]:
    """SN by backend; 'plain' is that of graphs, of second derivatives and of ``torch.func``.

    Triton's kernels run in its interpreter, and are left out where it is not installed.
    """
    layers = {'aten': partial(_backend, aten), 'plain': _plain}
    if cpu.unavailable() is None:
        layers['cpu'] = partial(_backend, cpu)
    if with_triton:
        try:
            from sn_mm.ops.triton import launch
        except ImportError:
            return layers
        layers['triton'] = partial(_backend, launch)
    return layers


def _backend(backend: ModuleType, x: Tensor, dy: Tensor) -> Results:
    """The passes of a backend, as sn_mm.ops.protocol has them."""
    settings = Settings(_scopes(x), EPS, 0)
    parameters = Parameters(*LOGITS, *affine(x.shape[1]))
    running = _start(x.shape[1], torch.float32)
    total = x.numel() // x.shape[1]
    moments = backend.measure(x, settings, running, True)
    y = backend.normalize(x, moments, parameters, settings)
    dy = dense(dy, like=x)
    sums, grads = backend.reduce(dy, x, moments, parameters, settings, True)
    dx = backend.propagate(dy, x, moments, sums, parameters, settings, total)
    evaluated = backend.measure(x, settings, running, False)
    return {
        'y': y,
        'dx': dx,
        'dweight': grads.weight,
        'dbias': grads.bias,
        'dlogits': torch.stack([grads.mean_weight, grads.var_weight]),
        'running mean': running.mean,
        'running var': running.var,
        'y, eval': backend.normalize(x, evaluated, parameters, settings),
    }


def _plain(x: Tensor, dy: Tensor) -> Results:
    parameters = Parameters(*(t.clone().requires_grad_() for t in (*LOGITS, *affine(x.shape[1]))))
    mean, var, batches, momentum = _start(x.shape[1], torch.float32)

    def run(x: Tensor, training: bool) -> Tensor:
        logits, others = parameters[:2], parameters[2:]
        return equations.switch_norm(
            x, *logits, mean, var, *others, training, momentum, EPS, list(AXES), 0, batches
        )

    return _results(partial(run, training=True), partial(run, training=False), parameters,
                    (mean, var), x, dy)  # fmt: skip


def exact_sn(x: Tensor, dy: Tensor) -> Results:
    """By its definition in float64; evaluation has its running statistics rounded to float32."""
    channels = x.shape[1]
    leaves = [t.double().requires_grad_() for t in (*LOGITS, *affine(channels))]
    mean_logits, var_logits, weight, bias = leaves
    scopes = _scopes(x)
    running = _start(channels, torch.float64)

    def run(x: Tensor, training: bool) -> Tensor:
        means = {k: x.mean(AXES[k], keepdim=True) for k in scopes}
        variances = {k: (x - means[k]).square().mean(AXES[k], keepdim=True) for k in scopes}
        if training:
            count = x.numel() / channels
            with torch.no_grad():
                running.mean.lerp_(means['bn'].flatten(), MOMENTUM)
                unbiased = variances['bn'].flatten() * (count / max(count - 1, 1))
                running.var.lerp_(unbiased, MOMENTUM)
        else:
            kept = running.mean, running.var
            means['bn'], variances['bn'] = (t.float().double().view(-1, 1, 1) for t in kept)
        first = len(AXES) - len(scopes)
        p, q = mean_logits[first:].softmax(0), var_logits[first:].softmax(0)
        mean = sum(share * means[k] for share, k in zip(p, scopes))
        var = sum(share * variances[k] for share, k in zip(q, scopes))
        std = torch.sqrt(var + EPS)
        xhat = (x - mean) / std
        if training:
            terms = (weight.view(-1, 1, 1) * t.sum((2, 3), True) for t in (dy, dy * xhat))
            sizes.extend(t.detach().abs().sum() for t in terms)
        return weight.view(-1, 1, 1) * xhat + bias.view(-1, 1, 1)

    x, dy = x.double(), dy.double()
    sizes: list[Tensor] = []
    results = _results(partial(run, training=True), partial(run, training=False), leaves,
                       running[:2], x, dy)  # fmt: skip
    return {**results, SIZES: torch.stack(sizes).unsqueeze(1)}


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
