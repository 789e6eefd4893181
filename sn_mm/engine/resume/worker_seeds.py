"""Random states of a data loader's workers that a resumed training can continue."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


class WorkerSeeds:
    """Seeds each worker of a data loader anew before every mini-batch that it makes.

    The seed comes from the training's seed, the rank, the worker and the number of mini-batches
    that the worker has made since the first epoch. So workers that are started for an epoch augment
    it as workers would that have lived since the first. MMEngine seeds by rank and worker alone:
    workers that live for an epoch augment every epoch alike, and the states of those that live on
    are lost when the training ends.

    Args:
        loader: A data loader with workers, changed in place: ``worker_init_fn``, which is called
            first, and ``collate_fn``.
        seed: The training's seed.
        rank: This process's number.

    Attributes:
        epoch: The epoch that workers are started for, counted from 0.
    """

    def __init__(self, loader: DataLoader, seed: int, rank: int) -> None:
        self.entropy = [seed, rank]
        self.num_workers = loader.num_workers
        self.num_batches = len(loader)
        self.worker_init_fn = loader.worker_init_fn
        self.collate_fn = loader.collate_fn
        self.epoch = 0
        loader.worker_init_fn = self.start
        loader.collate_fn = self.collate

    def start(self, worker: int) -> None:
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker)
        self.worker = worker
        self.made = self.epoch * len(range(worker, self.num_batches, self.num_workers))
        self._seed()

    def collate(self, samples: list) -> Any:
        batch = self.collate_fn(samples)
        self.made += 1
        self._seed()
        return batch

    def _seed(self) -> None:
        sequence = np.random.SeedSequence([*self.entropy, self.worker, self.made])
        python, numpy, torch_ = sequence.generate_state(3).tolist()
        random.seed(python)
        np.random.seed(numpy)
        torch.manual_seed(torch_)
