r"""The contract of a backend: the steps of both passes of SN, from input to output.

:mod:`sn_mm.autograd` makes the passes of the steps. Forward:

    measure      x -> moments of the scopes; without ranks, moves the running statistics
    [contribute, all_reduce, unite     the batch scope of all ranks; moves the running statistics]
    normalize    x, moments, parameters -> y

Backward:

    reduce       dy, x, moments, parameters -> sums, gradients of the parameters
    [all_reduce of the batch scope's sums]
    propagate    dy, x, moments, sums, parameters -> dx

What stands in brackets is done where the layer is synchronized over ranks. Where it is not, a
backend may do a whole pass in one call, if that saves time on the host (:class:`Forward`,
:class:`Backward`).

Shapes and dtypes, for all backends: ``x``, ``dy``, ``y`` and ``dx`` are (N, C, \*S) with
L = prod(S) positions, not empty, dense in one and the same memory format (contiguous, channels_last
or channels_last_3d). Moments and sums are contiguous and in ``stats_dtype(x.dtype)``: float64 for
float64 input, else float32. Parameters and running statistics may have any floating dtype.

The equations, and the tuples that the functions take, are those of :mod:`sn_mm.equations`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..equations import Moments, Parameters, Running, Settings, Sums

__all__ = [
    'Backend', 'Backward', 'Forward', 'Moments', 'Parameters', 'Running', 'Settings', 'Sums',
]  # fmt: skip


class Forward(Protocol):
    """``measure`` and ``normalize`` in one call."""

    def __call__(
        self,
        x: Tensor,
        parameters: Parameters,
        settings: Settings,
        running: Running | None,
        training: bool,
        keep: bool,
    ) -> tuple[Tensor, Moments]:
        """The output and the moments.

        Args:
            keep: Whether the moments are wanted; if not they may be missing.
        """


class Backward(Protocol):
    """``reduce`` and ``propagate`` in one call."""

    def __call__(
        self,
        dy: Tensor,
        x: Tensor,
        moments: Moments,
        parameters: Parameters,
        settings: Settings,
        measured: bool,
        to_input: bool,
    ) -> tuple[Tensor | None, Parameters]:
        """``dx``, None without ``to_input``, and the gradients of the parameters."""


class Backend(Protocol):
    """The functions of a backend, one module each."""

    @property
    def forward(self) -> Forward | None:
        """The forward pass of a layer that is not synchronized; None: it is done in steps."""

    @property
    def backward(self) -> Backward | None:
        """The backward pass of such a layer; None: it is done in steps."""

    def measure(
        self, x: Tensor, settings: Settings, running: Running | None, training: bool
    ) -> Moments:
        """Moments of 'in' and of the other scopes of ``settings``.

        Args:
            running: With ``training``: to be moved towards 'bn', with its variance unbiased
                (times NL / (NL - 1), not with ``correction``), as (1 - share) old + share new in
                float32 or wider. Without: these, copied, are 'bn'. None: 'bn' is measured and
                nothing moved.
            training: See ``running``.

        Where 'bn' is the only scope and given, ``x`` is not read, and 'in' is filled with 'bn'.
        """

    def contribute(self, batch: Tensor, count: int) -> Tensor:
        """The numbers that a rank adds to the batch scope: (2C + 1,) float64.

        Args:
            batch: (2, 1, C), the moments of 'bn' on this rank.
            count: Positions behind them, N L; 0 for an empty batch, whose moments are 0.

        Returns:
            [count, count * mean, count * (var + mean^2)].
        """

    def unite(
        self, totals: Tensor, dtype: torch.dtype, settings: Settings, running: Running | None
    ) -> Tensor:
        """Moments of 'bn' over all ranks, (2, 1, C) in ``dtype``; moves ``running`` towards them.

        Args:
            totals: The sum of the ranks' contributions. Without positions the moments are 0 and
                ``running`` stays as it is, the number of batches included.
        """

    def normalize(
        self, x: Tensor, moments: Moments, parameters: Parameters, settings: Settings
    ) -> Tensor:
        """``w (x - mu) r + bias``, with dtype and memory format of ``x``; never a view of it."""

    def reduce(
        self,
        dy: Tensor,
        x: Tensor,
        moments: Moments,
        parameters: Parameters,
        settings: Settings,
        measured: bool,
    ) -> tuple[Sums, Parameters]:
        """The sums, and the gradients of the parameters, each with its parameter's dtype.

        Args:
            measured: Whether 'bn' was measured, so that a gradient flows through it.

        Gradients are this rank's own; without a weight or bias theirs is None.
        """

    def propagate(
        self,
        dy: Tensor,
        x: Tensor,
        moments: Moments,
        sums: Sums,
        parameters: Parameters,
        settings: Settings,
        total: int | Tensor,
    ) -> Tensor:
        """``dx``, with dtype and memory format of ``x``.

        Args:
            sums: With ``batch`` summed over the ranks where synchronized; a ``batch`` of None holds
                'bn' fixed.
            total: Positions behind 'bn', over all ranks: a number, or a float64 scalar on the
                device of ``x``.
        """
