"""The model itself, inside wrappers."""

from __future__ import annotations

import torch.distributed as dist
from mmengine.model import BaseModel, BaseTTAModel, MMDistributedDataParallel
from torch import nn

from sn_mm.engine.unwrap import unwrap


class Net(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)  # the name that wrappers use

    def forward(self, *args):
        return {}


class Tta(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


def test_wrappers_are_removed_and_the_model_stays():
    model = Net()
    assert unwrap(model) is model
    assert unwrap(Tta(model)) is model
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert unwrap(MMDistributedDataParallel(Tta(model))) is model
    finally:
        dist.destroy_process_group()
