"""Mini-batches for the batch average: the training's own, as many as asked for, by seed."""

from __future__ import annotations

import pytest
import torch
from mmengine.dataset import BaseDataset, RepeatDataset
from torch import nn
from torch.utils.data import ConcatDataset, Dataset
from toy_training import Model, loader

from sn_mm.engine.training_set import copy_dataset, measure_on_training_set
from sn_mm.errors import InputError


class Recorder(Model):
    """Remembers what it was shown, also by the copies of it that are measured."""

    shown: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor, mode: str) -> object:
        self.shown.append(image)
        return super().forward(image, mode)


class Numbers(Dataset):
    def __init__(self, count: int = 6) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {'image': torch.full((3, 5, 5), float(index))}


def numbers(count: int = 6) -> dict:
    return dict(loader(), dataset=Numbers(count))


def shown(num_iters: int, seed: int = 0) -> list[tuple[int, ...]]:
    Recorder.shown.clear()
    measure_on_training_set(Recorder(), numbers(), num_iters, seed)
    return [tuple(int(image.mean()) for image in batch) for batch in Recorder.shown]


def test_each_epoch_shows_the_whole_training_set_in_an_order_of_its_own() -> None:
    batches = shown(7)
    assert len(batches) == 7
    first, second = (sum(batches[start : start + 3], ()) for start in (0, 3))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


def test_the_seed_chooses() -> None:
    assert shown(3) == shown(3) != shown(3, seed=1)


class Counting(list):
    """A transform with a state."""

    def __call__(self, sample: dict) -> dict:
        self.append(sample['index'])
        return sample


class Listed(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(index=index) for index in range(3)]


@pytest.mark.parametrize('serialize', [True, False])
def test_a_copy_has_transforms_of_its_own_and_shares_the_annotations(serialize: bool) -> None:
    inner = Listed(pipeline=[Counting()], serialize_data=serialize)
    whole = ConcatDataset([RepeatDataset(inner, 2)])
    twin = copy_dataset(whole)
    assert [twin[i]['index'] for i in range(6)] == [whole[i]['index'] for i in range(6)]
    copied = twin.datasets[0].dataset
    name = 'data_bytes' if serialize else 'data_list'
    assert copied is not inner and getattr(copied, name) is getattr(inner, name)
    assert copied.pipeline.transforms[0] is not inner.pipeline.transforms[0]
    assert len(copied.pipeline.transforms[0]) == len(inner.pipeline.transforms[0]) == 6


@pytest.mark.parametrize('bn', [False, True])
def test_a_model_without_such_layers_is_refused(bn: bool) -> None:
    model = Model()
    model.norm = model.bn = nn.Identity()
    with pytest.raises(InputError, match='no SN or BatchNorm' if bn else 'no SN layer'):
        measure_on_training_set(model, numbers(), 1, bn=bn)


def test_an_empty_training_set_is_refused() -> None:
    with pytest.raises(InputError, match='no samples'):
        measure_on_training_set(Model(), dict(numbers(0), sampler=range(0)), 1)
