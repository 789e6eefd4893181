"""Bytes and time of the collectives of synchronized norms: arithmetic and the alpha-beta model.

A collective takes (rounds * alpha + bytes / bandwidth): alpha is the time of a message without
content, bytes are those that one rank receives. The algorithms and their costs are those of Thakur,
Rabenseifner and Gropp, *Optimization of Collective Communication Operations in MPICH*, 2005; the
additions take no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, log2
from typing import Any, NamedTuple

RANKS = (8, 16, 64, 256, 512, 1024, 4096)
ALPHA = 10e-6
"""Seconds. Chosen, not measured: a small message between machines."""
BANDWIDTH = 12.5e9
"""Bytes a second of one rank. Chosen, not measured: a network of 100 Gbit/s."""


def mask_rcnn_channels() -> list[int]:
    """Channels of the norms of Mask R-CNN R50-FPN with a 4conv1fc box head, in their order.

    ResNet-50 has 53, the pyramid 8, box head and mask head 4 each.
    """
    channels = [64]
    for blocks, width in zip((3, 4, 6, 3), (64, 128, 256, 512)):
        channels += [width, width, 4 * width, 4 * width]  # the last is the shortcut's
        channels += [width, width, 4 * width] * (blocks - 1)
    return channels + [256] * 16


class Collective(NamedTuple):
    """``numbers`` of ``size`` bytes each that every rank gives to an all_reduce or all_gather."""

    kind: str
    numbers: int
    size: int

    @property
    def given(self) -> int:
        """Bytes that a rank gives."""
        return self.numbers * self.size

    def result(self, ranks: int) -> int:
        """Bytes that each rank gets into its memory."""
        return self.given * (ranks if self.kind == 'all_gather' else 1)


def of_sn(channels: int) -> tuple[Collective, Collective]:
    """Forward and backward of a synchronized SN layer."""
    forward = Collective('all_reduce', 2 * channels + 1, 8)
    return forward, Collective('all_reduce', 2 * channels, 4)


def of_sync_batch_norm(channels: int) -> tuple[Collective, Collective]:
    """Forward and backward of ``nn.SyncBatchNorm``, and of SN as it was with an all_gather."""
    forward = Collective('all_gather', 2 * channels + 1, 4)
    return forward, Collective('all_reduce', 2 * channels, 4)


SCHEMES: dict[str, Callable[[int], tuple[Collective, Collective]]] = {
    'SN': of_sn,
    'SyncBatchNorm': of_sync_batch_norm,
}


class Cost(NamedTuple):
    """Messages one after the other, and bytes that a rank receives in them."""

    rounds: int
    bytes: float

    def seconds(self, alpha: float, bandwidth: float) -> float:
        return self.rounds * alpha + self.bytes / bandwidth


def ring(collective: Collective, ranks: int) -> Cost:
    """Parts go round; an all_reduce goes round twice, with parts of 1 / ranks."""
    if collective.kind == 'all_gather':
        return Cost(ranks - 1, (ranks - 1) * collective.given)
    return Cost(2 * (ranks - 1), 2 * (ranks - 1) / ranks * collective.given)


def recursive_doubling(collective: Collective, ranks: int) -> Cost:
    """Pairs exchange all that they have, at distances 1, 2, 4, ..."""
    rounds = ceil(log2(ranks))
    if collective.kind == 'all_gather':
        return Cost(rounds, (ranks - 1) * collective.given)
    return Cost(rounds, rounds * collective.given)


def tree(collective: Collective, ranks: int) -> Cost:
    """To one rank along a binomial tree, and back."""
    depth = ceil(log2(ranks))
    if collective.kind == 'all_gather':  # the root receives all others; all of it goes back
        all_of_it = ranks * collective.given
        return Cost(2 * depth, (ranks - 1) * collective.given + depth * all_of_it)
    return Cost(2 * depth, 2 * depth * collective.given)


ALGORITHMS: dict[str, Callable[[Collective, int], Cost]] = {
    'ring': ring,
    'recursive doubling': recursive_doubling,
    'tree': tree,
}


def simulate(
    channels: Sequence[int], ranks: int, alpha: float = ALPHA, bandwidth: float = BANDWIDTH
) -> dict[str, Any]:
    """One training step of a model whose norms have these channels.

    Returns:
        By scheme: ``forward_bytes`` and ``backward_bytes``, the results in each rank's memory;
        ``received_bytes`` and ``seconds`` by algorithm, of both passes.
    """
    record: dict[str, Any] = {'ranks': ranks}
    for scheme, collectives in SCHEMES.items():
        passes = [collectives(c) for c in channels]
        both = [collective for layer in passes for collective in layer]
        costs = {name: [cost(c, ranks) for c in both] for name, cost in ALGORITHMS.items()}
        record[scheme] = {
            'forward_bytes': sum(forward.result(ranks) for forward, _ in passes),
            'backward_bytes': sum(backward.result(ranks) for _, backward in passes),
            'received_bytes': {name: sum(c.bytes for c in of) for name, of in costs.items()},
            'seconds': {
                name: sum(c.seconds(alpha, bandwidth) for c in of) for name, of in costs.items()
            },
        }
    return record
