"""The network of a trial, for one rank and for the judge, who sees those of all ranks at once."""

from __future__ import annotations

from collections.abc import Sequence

import reference
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from sn_mm import SwitchNorm1d, SwitchNorm2d

from .trial import Layer, Step, Trial

_EXTRA = 5
_EPS = 0.01  # a layer that meets one pixel in all would magnify float32's rounding by 300 with 1e-5


class Own(nn.Module):
    """The layer under trial, on the one tensor that a rank has."""

    def __init__(self, layer: Layer, vectors: bool) -> None:
        super().__init__()
        kind = SwitchNorm1d if vectors else SwitchNorm2d
        self.norm = kind(layer.channels, _EPS, normalizers=layer.normalizers, sync=layer.sync)

    def forward(self, *xs: Tensor) -> tuple[Tensor, ...]:
        (x,) = xs
        return (self.norm(x),)


class Union(Own):
    """The judge: all ranks' tensors, those of a group as one batch, by the reference."""

    def __init__(self, layer: Layer, vectors: bool, ranks: int) -> None:
        super().__init__(layer, vectors)
        self.normalizers = layer.normalizers
        size = ranks if layer.sync is True else int(layer.sync or 1)
        self.groups = [range(first, first + size) for first in range(0, ranks, size)]
        fresh = self.norm.running_mean, self.norm.running_var
        self.running = [fresh for _ in self.groups]

    def forward(self, *xs: Tensor) -> tuple[Tensor, ...]:
        ys: list[Tensor] = []
        for number, group in enumerate(self.groups):
            mean, var = self.running[number]
            result = reference.switch_norm(
                [xs[rank] for rank in group],
                **dict(self.norm.named_parameters()),
                running_mean=mean,
                running_var=var,
                training=self.norm.training,
                normalizers=self.normalizers,
                eps=_EPS,
            )
            self.running[number] = result.running_mean, result.running_var
            ys += result.outputs
        return tuple(ys)


class Network(nn.Module):
    """Blocks of a convolution and a norm; a head on RoIs; parameters that a rank may leave unused.

    Args:
        trial: Gives the layers.
        judge: Build it for all ranks' tensors at once, with :class:`Union` for norms.
    """

    def __init__(self, trial: Trial, judge: bool = False) -> None:
        super().__init__()
        *trunk, roi_layer, vector_layer = trial.layers
        self.checkpointing = '' if judge else trial.checkpointing

        def norm(layer: Layer, vectors: bool = False) -> Own:
            return Union(layer, vectors, trial.ranks) if judge else Own(layer, vectors)

        widths = [3, *(layer.channels for layer in trunk)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(map(norm, trunk))
        self.roi_conv = nn.Conv2d(widths[-1], roi_layer.channels, 1)
        self.roi_norm = norm(roi_layer)
        self.linear = nn.Linear(roi_layer.channels, vector_layer.channels)
        self.vector_norm = norm(vector_layer, vectors=True)
        self.extra = nn.Linear(widths[-1], _EXTRA)
        self.to(torch.float64 if judge else getattr(torch, trial.dtype))
        generator = torch.Generator().manual_seed(trial.seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def layers(self) -> list[Own]:
        return [*self.norms, self.roi_norm, self.vector_norm]

    def set_mode(self, mode: str) -> None:
        self.train(mode != 'eval')
        for layer in self.layers():
            layer.train(mode == 'train')

    def forward(self, step: Step, ranks: Sequence[int], *xs: Tensor) -> list[list[Tensor]]:
        """The outputs of each rank in ``ranks``, whose images ``xs`` are."""
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms)):

            def block(*xs: Tensor, conv: nn.Module = conv, norm: nn.Module = norm) -> tuple:
                return tuple(silu(y) for y in norm(*map(conv, xs)))

            if self.checkpointing and number and torch.is_grad_enabled():
                xs = checkpoint(block, *xs, use_reentrant=self.checkpointing == 'reentrant')
            else:
                xs = block(*xs)
        outputs = [[x] for x in xs]
        for call in range(len(step.rois[0])):
            rois = [_crop(x, step.rois[rank][call], step.roi_size) for rank, x in zip(ranks, xs)]
            features = self.roi_norm(*map(self.roi_conv, rois))
            vectors = [self.linear(silu(y).mean((2, 3))) for y in features]
            for output, y in zip(outputs, self.vector_norm(*vectors)):
                output.append(y)
        for output, x, rank in zip(outputs, xs, ranks):
            if step.extra[rank]:
                output.append(self.extra(x.sum((2, 3))))
        return outputs


def _crop(x: Tensor, count: int, size: int) -> Tensor:
    """RoIs of a feature tensor; without any, zeros that no layer made, as RoI extractors give."""
    if not count:
        return x.new_zeros(0, x.shape[1], size, size)
    return torch.stack([x[i % len(x), :, :size, :size] for i in range(count)])
