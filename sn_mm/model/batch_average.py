"""Batch average, the statistics with which the paper evaluates SN (arXiv 1806.10779, section 3).

Training normalizes with the statistics of each mini-batch and keeps a moving average of them, over
weights that change. The batch average is taken with the weights that are evaluated: freeze the
network, feed it mini-batches of the training set, average.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Union

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError, check_type
from ..layer import SwitchNorm
from ..sharding import is_sharded

__all__ = ['measure_batch_average', 'set_statistics', 'tracking_layers', 'update_bn']

_Norm = Union[SwitchNorm, _BatchNorm]


def tracking_layers(model: nn.Module, bn: bool = False) -> dict[str, _Norm]:
    """The SN layers that keep running statistics, and with ``bn`` BatchNorm's, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (SwitchNorm, _BatchNorm) if bn else SwitchNorm)
        and module.running_mean is not None
    }


def check_not_sharded(model: nn.Module) -> None:
    """Refuses a model that FSDP shards, which cannot be copied.

    Raises:
        InputError: It is one.
    """
    if is_sharded(model):
        raise InputError(
            'the batch average of a model that FSDP shards is measured from its checkpoint: '
            'sn-mm batch-average, or sn_mm.update_bn on the model without FSDP'
        )


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    return {
        f'{name}.{buffer}'.removeprefix('.'): getattr(layer, buffer)
        for name, layer in tracking_layers(model, bn=True).items()
        for buffer in ('running_mean', 'running_var', 'num_batches_tracked')
    }


@torch.no_grad()
def measure_batch_average(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object],
    bn: bool = False,
) -> dict[str, Tensor]:
    """Averages each layer's batch statistics over mini-batches, with frozen weights.

    Each time that a layer runs, the mean and the unbiased variance of its minibatch scope are added
    up, as training adds them to the running statistics, pooled over ranks as its ``sync`` says.
    All runs weigh the same, whatever their number of positions; empty batches do not count. The
    network is in training mode: every layer normalizes with its batch.

    A copy of ``model`` runs; ``model`` itself does not change.

    Args:
        model: The network, without a DistributedDataParallel around it.
        batches: The mini-batches of this rank. Every rank needs as many.
        forward: Called with the network and a mini-batch; runs the forward pass of a training step.
        bn: Average BatchNorm's statistics as well. Default: False.

    Returns:
        ``running_mean`` and ``running_var`` by their keys in the state dict, the same on all ranks,
        of the layers that train and ran. Layers that the model keeps in evaluation mode (frozen
        stages) or never runs are left out.

    Raises:
        InputError: Arguments of another kind, or no such layer, on no rank; a model that FSDP
            shards; ``forward`` runs ``model`` and not the network that it is given.
    """
    check_type('model', model, nn.Module, 'a torch.nn.Module')
    check_type('forward', forward, Callable, 'a function of the model and a batch')  # type: ignore[arg-type]
    check_not_sharded(model)
    kept = {key: value.clone() for key, value in _statistics(model).items()}
    frozen = copy.deepcopy(model).train()
    layers = {name: m for name, m in tracking_layers(frozen, bn).items() if m.training}
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative average
    for batch in batches:
        forward(frozen, batch)
    counts = (key for key in kept if key.endswith('num_batches_tracked'))
    if any(not torch.equal(model.get_buffer(key), kept[key]) for key in counts):
        set_statistics(model, kept)
        raise InputError(
            'forward must run the network that it is given, a copy of model: it ran model itself, '
            'whose statistics are restored'
        )
    statistics = _average_over_ranks(layers)
    if not statistics:  # on all ranks alike
        raise InputError(
            f'no {"SN or BatchNorm" if bn else "SN"} layer of the model trains, keeps running '
            f'statistics and ran{"" if bn else " (BatchNorm takes part with bn=True)"}'
        )
    return statistics


@torch.no_grad()
def set_statistics(model: nn.Module, statistics: dict[str, Tensor]) -> None:
    """Copies the result of :func:`measure_batch_average` into a model's buffers.

    Raises:
        InputError: A statistic of another model. This one is then as it was.
    """
    buffers = dict(model.named_buffers())
    for key, value in statistics.items():
        if key not in buffers or buffers[key].shape != value.shape:
            there = f'of shape {tuple(buffers[key].shape)}' if key in buffers else 'none'
            raise InputError(
                f'{key} of shape {tuple(value.shape)} has no place in the model: there it is '
                f'{there}'
            )
    for key, value in statistics.items():
        buffers[key].copy_(value)


def update_bn(
    loader: Iterable[Any], model: nn.Module, device: int | torch.device | None = None
) -> None:
    """``torch.optim.swa_utils.update_bn`` for models with SN, BatchNorm included.

    torch's own looks for BatchNorm alone: it leaves the statistics of SN as they are and, without a
    BatchNorm in the model, returns without a word. Averaged weights (``AveragedModel``) need this
    one. See :func:`measure_batch_average` for what is measured; nothing else in the model changes.

    Args:
        loader: Mini-batches: a tensor each, or a list or tuple whose first entry goes into the
            model. Over several ranks each needs as many.
        model: Called with one tensor.
        device: Where the tensors go first. Default: they stay.

    Raises:
        InputError: A DistributedDataParallel in the model, whose broadcasts would replace what is
            measured; layers with running statistics, none of which ran.

    Examples::

        >>> averaged = torch.optim.swa_utils.AveragedModel(model)
        >>> sn_mm.update_bn(loader, averaged)
    """
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise InputError('update_bn: model must be the network inside DistributedDataParallel')
    if not tracking_layers(model, bn=True):
        return  # nothing that averaged weights would make wrong

    def forward(network: nn.Module, batch: Any) -> None:
        first = batch[0] if isinstance(batch, (list, tuple)) else batch
        network(first if device is None else first.to(device))

    set_statistics(model, measure_batch_average(model, loader, forward, bn=True))


def _average_over_ranks(layers: dict[str, _Norm]) -> dict[str, Tensor]:
    """Cumulative averages of all ranks, weighted by how often the layer ran on each."""
    local: dict[str, tuple[Tensor, Any]] = {
        f'{name}.{buffer}'.removeprefix('.'): (getattr(layer, buffer), layer.num_batches_tracked)
        for name, layer in layers.items()
        for buffer in ('running_mean', 'running_var')
    }
    if not local:
        return {}
    sums = torch.cat([n * torch.cat([n.new_ones(1), t]).double() for t, n in local.values()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    totals = sums.split([1 + len(t) for t, _ in local.values()])
    return {
        key: (total[1:] / total[0]).to(t.dtype)
        for (key, (t, _)), total in zip(local.items(), totals)
        if total[0] > 0
    }
