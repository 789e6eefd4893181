"""A training in miniature through MMEngine's Runner, with everything that a hook could disturb."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from sn_mm import SwitchNorm2d


class Noise(Dataset):
    """Images that depend on all three random states, as augmentation does."""

    metainfo: dict[str, Any] = {}

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scale = index + random.random() + np.random.rand()
        return {'image': torch.randn(3, 5, 5) * scale}


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = SwitchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.bn = nn.BatchNorm2d(4)
        self.evaluated: list[Tensor] = []

    def forward(self, image: Tensor, mode: str) -> Any:
        if mode == 'predict':
            self.evaluated.append(self.norm.running_mean.clone())
            return [image]
        x = self.bn(self.drop(self.norm(self.conv(image))))
        return {'loss': (x - image.mean()).square().mean()}


class Metric(BaseMetric):
    def process(self, *args: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {'metric': 0.0}


def loader() -> dict:
    return dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(type=Noise),
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='default_collate'),
    )


def by_iteration(**changes: Any) -> dict:
    """Settings of a training of 6 iterations, from one long iterator over the data."""
    return dict(
        train_cfg=dict(by_epoch=False, max_iters=6, **changes),
        train_dataloader=dict(loader(), sampler=dict(type='InfiniteSampler', seed=1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
    )


def build_runner(
    work_dir: Path, *hooks: Hook | dict, model: nn.Module | None = None, **changes: Any
) -> Runner:
    """A runner of 2 epochs of 3 iterations that validates and saves after each."""
    torch.manual_seed(0)
    settings = dict(
        model=model or Model(),
        work_dir=str(work_dir),
        train_dataloader=loader(),
        val_dataloader=dict(loader(), sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=[Metric()],
        val_cfg={},
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=list(hooks),
        randomness=dict(seed=0),
        experiment_name=str(work_dir).replace('/', '_'),
        log_level='ERROR',
    )
    return Runner(**{**settings, **changes})


@contextmanager
def disk_full_at(name: str) -> Iterator[None]:
    """A disk that has no space left for one checkpoint."""
    write = open

    def full(path: Any, *args: Any) -> Any:
        return write('/dev/full' if str(path).endswith(f'/{name}.tmp') else path, *args)

    with patch('sn_mm.engine.resume.atomic_backend.open', full, create=True):
        yield
