"""The batch average of a toolbox's model over its own training set."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, is_main_process
from mmengine.runner import Runner
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import InputError
from ..model.batch_average import measure_batch_average
from .resume.random_states import get_random_states, set_random_states

_ANNOTATIONS = ('data_list', 'data_bytes', 'data_address')
"""The attributes in which an MMEngine data set keeps its annotations."""


def check_seed(name: str, seed: object) -> None:
    """Checks a seed: ranks add their number, and NumPy takes 32 bits.

    Raises:
        InputError: Not an int from 0 to 2^31 - 1.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise InputError(f'{name} must be an int from 0 to 2^31 - 1, got {seed!r}')


def copy_dataset(dataset: Any) -> Any:
    """Copies a data set whose transforms may keep a state, without copying its annotations.

    Nothing writes to the annotations of an MMEngine data set, so both share them.

    Args:
        dataset: A data set, or wrappers such as ``ConcatDataset`` around some.

    Returns:
        The copy.
    """
    shared, found = {}, [dataset]
    while found:
        inner = found.pop()
        for name in _ANNOTATIONS:
            annotations = getattr(inner, name, None)
            shared[id(annotations)] = annotations
        found += [inner.dataset] if hasattr(inner, 'dataset') else getattr(inner, 'datasets', [])
    return copy.deepcopy(dataset, shared)


def measure_on_training_set(
    model: nn.Module, dataloader: dict, num_iters: int, seed: int = 0, bn: bool = False
) -> dict[str, Tensor]:
    """Averages batch statistics over mini-batches of the training set, with a progress bar.

    The mini-batches come from a second loader and go through the model's training step up to the
    losses. Afterwards the random states of Python, NumPy and torch are what they were before.

    Args:
        model: A toolbox's model, without a wrapper. It does not change.
        dataloader: Config of the training's data loader; its ``dataset`` may be a data set.
        num_iters: Mini-batches for each rank. Beyond an epoch the next one begins.
        seed: Chooses the mini-batches and their augmentation.
        bn: Average BatchNorm's statistics as well.

    Returns:
        As :func:`sn_mm.model.batch_average.measure_batch_average`.

    Raises:
        InputError: The training set is empty, or the model has no layer to measure.
    """
    with _random_state(seed + get_rank()):
        loader = Runner.build_dataloader({**dataloader, 'persistent_workers': False}, seed)
        if len(loader.dataset) == 0:
            raise InputError('train_dataloader.dataset has no samples')
        batches = track(
            islice(_epochs(loader), num_iters),
            description='Batch average',
            total=num_iters,
            disable=not is_main_process(),
        )
        return measure_batch_average(model, batches, _compute_losses, bn)


def _epochs(loader: DataLoader) -> Iterator[Any]:
    """Mini-batches of one epoch after another, each epoch in its own order."""
    for epoch in count():
        sampler: Any = getattr(loader.batch_sampler, 'sampler', None)
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
        yield from loader


def _compute_losses(model: Any, batch: Any) -> None:
    """Computes losses as ``BaseModel.train_step``, in full precision, and updates no weights."""
    data = model.data_preprocessor(batch, True)
    if isinstance(data, dict):
        model(**data, mode='loss')
    else:
        model(*data, mode='loss')


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seeds all random generators, and restores their states at the end."""
    states = get_random_states()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(states)
