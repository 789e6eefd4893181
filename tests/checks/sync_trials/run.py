"""A trial on a rank, and by the judge: the same steps, the same tensors to compare."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .network import Network, Union
from .trial import Step, Trial

Found = dict[str, np.ndarray]
"""What there is to compare on a rank, by name."""

_LEARNING_RATE = 1e-3
TOLERANCE = {'float64': 1e-7, 'float32': 1e-3}
"""Absolute, and relative to the largest value of a tensor."""


def run_on_rank(rank: int, trial: Trial) -> Found:
    """The trial on this rank, in the default process group."""
    net: Network = Network(trial)
    parallel: nn.Module | None = None
    found: Found = {}
    for number, step in enumerate(trial.steps):
        if trial.history and (trial.history.rank, trial.history.step) == (rank, number):
            _change(net.layers()[trial.history.layer], trial.history.how)
        if trial.wrapper and parallel is None:
            parallel = _wrap(net, trial)
        x = _images(trial, number)[rank].to(getattr(torch, trial.dtype))
        x.requires_grad_(step.needs_gradient[rank])
        net.set_mode(step.mode)
        trains = step.mode != 'eval'
        model = parallel if parallel is not None and trains else net
        waits = step.accumulate and isinstance(model, DistributedDataParallel)
        with model.no_sync() if waits else nullcontext(), torch.set_grad_enabled(trains):
            (outputs,) = model(step, (rank,), x)
            if trains:
                _loss(trial, number, (rank,), [outputs]).backward()
        found |= _of_images(number, step, x, outputs)
        if trains and not step.accumulate:
            if parallel is None:
                _average_gradients(net)
            found |= _step(net, number)
    for name, buffer in net.named_buffers():
        if name.endswith(('running_mean', 'running_var')):
            found[f'at the end: {name}'] = buffer.numpy()
    return found


def judge(trial: Trial) -> list[Found]:
    """The trial in one process, which sees the union of the batches."""
    net = Network(trial, judge=True)
    ranks = range(trial.ranks)
    found: list[Found] = [{} for _ in ranks]
    for number, step in enumerate(trial.steps):
        xs = _images(trial, number)
        for x, needs in zip(xs, step.needs_gradient):
            x.requires_grad_(needs)
        net.set_mode(step.mode)
        with torch.set_grad_enabled(step.mode != 'eval'):
            outputs = net(step, ranks, *xs)
        if step.mode != 'eval':
            _loss(trial, number, ranks, outputs).backward()
        for rank in ranks:
            found[rank] |= _of_images(number, step, xs[rank], outputs[rank])
        if not step.accumulate and step.mode != 'eval':
            for p in net.parameters():
                p.grad = None if p.grad is None else p.grad / trial.ranks
            gradients = _step(net, number)
            for rank in ranks:
                found[rank] |= gradients
    for name, layer in net.named_modules():
        if isinstance(layer, Union):
            for running, group in zip(layer.running, layer.groups):
                for rank in group:
                    for kind, value in zip(('running_mean', 'running_var'), running):
                        found[rank][f'at the end: {name}.norm.{kind}'] = value.numpy()
    return found


def differences(trial: Trial, found: Sequence[Found], expected: Sequence[Found]) -> list[str]:
    """One line for each tensor of a rank that is not the judge's."""
    lines = []
    for rank, (mine, judged) in enumerate(zip(found, expected)):
        for name in sorted({*mine, *judged}):
            a, b = mine.get(name), judged.get(name)
            if a is None or b is None or a.shape != b.shape:
                lines.append(f'rank {rank}, {name}: not of the same shape')
                continue
            bound = TOLERANCE[trial.dtype] * (1 + np.abs(b).max(initial=0))
            if not (np.abs(a - b) <= bound).all():
                lines.append(f'rank {rank}, {name}: off by {np.abs(a - b).max():.2g}')
    return lines


def _wrap(net: Network, trial: Trial) -> DistributedDataParallel:
    settings = {} if trial.wrapper == 'ddp' else {trial.wrapper: True}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # new torch: the argument's name is old
        return DistributedDataParallel(net, broadcast_buffers=trial.broadcast_buffers, **settings)


def _of_images(number: int, step: Step, x: Tensor, outputs: Sequence[Tensor]) -> Found:
    """The outputs of a rank, and the gradient of its images."""
    found = {f'step {number}: output {i}': y.detach().numpy() for i, y in enumerate(outputs)}
    if x.requires_grad and step.mode != 'eval':
        gradient = torch.zeros_like(x) if x.grad is None else x.grad
        found[f'step {number}: gradient of the images'] = gradient.numpy()
    return found


def _step(net: nn.Module, number: int) -> Found:
    """The gradients of the parameters, which then move by them."""
    found: Found = {}
    for name, p in net.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        found[f'step {number}: gradient of {name}'] = gradient.numpy()
        p.data -= _LEARNING_RATE * gradient
        p.grad = None
    return found


def _average_gradients(net: nn.Module) -> None:
    for p in net.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def _images(trial: Trial, number: int) -> list[Tensor]:
    """The images of all ranks in a step, the same whoever asks."""
    generator = torch.Generator().manual_seed(trial.seed * 64 + number)
    return [
        torch.randn(n, 3, h, w, generator=generator).double() * 2 + 1
        for n, h, w in trial.steps[number].shapes
    ]


def _loss(trial: Trial, number: int, ranks: Sequence[int], outputs: Any) -> Tensor:
    """The sum of all outputs of these ranks, each weighted at random."""
    total: Any = 0
    for rank, of_rank in zip(ranks, outputs):
        generator = torch.Generator().manual_seed((trial.seed * 64 + number) * 8 + rank)
        for y in of_rank:
            total = total + (y * torch.randn(y.shape, generator=generator)).sum()
    return total


def _change(own: Any, how: str) -> None:
    """Another layer with the same state takes the place of this one, or its state is loaded."""
    before = [p.grad for p in own.norm.parameters()]
    if how == 'unpickled':
        own.norm = pickle.loads(pickle.dumps(own.norm))
    elif how == 'copied':
        own.norm = copy.deepcopy(copy.copy(own.norm))
    else:
        own.norm.load_state_dict(copy.deepcopy(own.norm.state_dict()))
    for p, gradient in zip(own.norm.parameters(), before):
        p.grad = gradient  # accumulated so far: neither pickles nor copies have it
