"""Trainings on ranks: the weights and buffers of one process that sees all images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from mmengine.model import BaseModel
from mmengine.runner._flexible_runner import FlexibleRunner
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed import fsdp
from torch.utils.data import Dataset
from toy_training import build_runner, disk_full_at

from sn_mm import SwitchNorm2d
from sn_mm.analysis.importance import by_component, from_log, from_state_dict
from sn_mm.engine.safe_load import safe_load
from sn_mm.errors import InputError

LR = 0.1
PER_RANK = 2  # images of a mini-batch
STEPS = 4
EMA = 0.25


def images() -> Tensor:
    """The images of all ranks: of a step, of a rank, in the order in which DefaultSampler deals."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS * PER_RANK * 2, 3, 5, 6, generator=generator) * 2 + 1


class Images(Dataset):
    metainfo: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(images())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {'image': images()[index]}


class Model(BaseModel):
    """Two layers of SN behind convolutions; all parameters get a gradient."""

    def __init__(self, sync: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), SwitchNorm2d(4, sync=sync), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(4, 6, 1), SwitchNorm2d(6, sync=sync))

    def forward(self, image: Tensor, mode: str = 'loss') -> Any:
        y = self.last(self.first(image))
        if mode == 'predict':
            return [image]
        return {'loss': (y.sin() + y.square() * image[:, :1, 1:-1, 1:-1]).mean()}


def train_alone(accumulated: int = 1) -> list[dict[str, Tensor]]:
    """The state after each mini-batch of one process that trains on the union of them."""
    model = Model(sync=False)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
    states = []
    for step, batch in enumerate(images().split(2 * PER_RANK), 1):
        (model(batch)['loss'] / accumulated).backward()
        if step % accumulated == 0:
            optimizer.step()
            optimizer.zero_grad()
        states.append({key: value.clone() for key, value in model.state_dict().items()})
    return states


DATA = dict(
    batch_size=PER_RANK,
    num_workers=0,
    dataset=dict(type=Images),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
OPTIMIZER = dict(type='SGD', lr=LR, momentum=0.9)
ONE_EPOCH = dict(by_epoch=True, max_epochs=1)


@contextmanager
def folder_of_all(rank: int) -> Iterator[Path]:
    """A folder that the ranks share, while all of them are in the body."""
    with tempfile.TemporaryDirectory() as own, patch.dict(os.environ, LOCAL_RANK=str(rank)):
        folder = [own]
        dist.broadcast_object_list(folder)
        yield Path(folder[0])
        dist.barrier()


@contextmanager
def trained(rank: int, *hooks: dict, **optim_wrapper: Any) -> Iterator[Any]:
    """A training by MMEngine's Runner on the ranks, ended."""
    with folder_of_all(rank) as folder:
        hook = dict(type='ResumableCheckpointHook', save_best='metric', rule='greater')
        runner = build_runner(
            folder,
            *hooks,
            default_hooks=dict(checkpoint=hook),
            model=Model(),
            train_dataloader=DATA,
            val_dataloader=DATA,
            train_cfg=ONE_EPOCH,
            optim_wrapper=dict(optimizer=OPTIMIZER, **optim_wrapper),
            launcher='pytorch',
            cfg={'model_wrapper_cfg': {'type': 'MMDistributedDataParallel', 'device_ids': None}},
        )
        runner.train()
        dist.barrier()
        yield runner


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5, msg=key)


@on_ranks(2)
def test_accumulated_gradients_give_the_weights_of_one_process(rank: int, size: int) -> None:
    with trained(rank, accumulative_counts=2) as runner:
        assert_same(runner.model.module.state_dict(), train_alone(2)[-1])


@on_ranks(2, cases=[{'update_buffers': False}, {'update_buffers': True}])
def test_ema_hook_averages_weights_and_saves_them(
    rank: int, size: int, update_buffers: bool
) -> None:
    hook = dict(type='EMAHook', momentum=EMA, update_buffers=update_buffers)
    states = train_alone()
    expected = dict(states[-1])
    averaged = expected if update_buffers else dict(Model().named_parameters())
    for key in averaged:
        expected[key] = states[0][key].clone()
        for state in states[1:]:
            if expected[key].is_floating_point():
                expected[key].lerp_(state[key], EMA)
    with trained(rank, hook) as runner:
        (file,) = Path(runner.work_dir).glob('epoch_*.pth')
        assert_same(runner.model.module.state_dict(), states[-1])
        assert_same(safe_load(file)['state_dict'], expected)


@on_ranks(2)
def test_sync_buffers_hook_leaves_what_all_ranks_agree_on(rank: int, size: int) -> None:
    with trained(rank, dict(type='SyncBuffersHook')) as runner:
        assert_same(runner.model.module.state_dict(), train_alone()[-1])


@on_ranks(2)
def test_a_full_disk_is_an_error_of_every_rank(rank: int, size: int) -> None:
    best = 'best_metric_epoch_1.pth'
    error = pytest.raises(InputError, match=f'{best} could not be written: No space left')
    with disk_full_at(best), error, trained(rank):
        pass


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, 'record_event'), reason='FSDP2 of torch 2.6 needs a GPU'
)
@pytest.mark.skipif(not hasattr(fsdp, 'fully_shard'), reason='torch < 2.6 has no FSDP2')
@on_ranks(2, cases=[{'accumulated': 1}, {'accumulated': 2}])
def test_fsdp2_gives_the_weights_of_one_process(rank: int, size: int, accumulated: int) -> None:
    model = Model()
    mesh = dist.device_mesh.init_device_mesh('cpu', (size,))
    for module in (model.first, model.last, model):
        fsdp.fully_shard(module, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
    for step, batch in enumerate(images().split(2 * PER_RANK), 1):
        last = step % accumulated == 0
        model.set_requires_gradient_sync(last)
        (model(batch[rank::size])['loss'] / accumulated).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()
    assert any(isinstance(p, dist.tensor.DTensor) for p in model.parameters())
    state = {
        key: value.full_tensor() if isinstance(value, dist.tensor.DTensor) else value
        for key, value in model.state_dict().items()
    }
    assert_same(state, train_alone(accumulated)[-1])


# MMEngine's 'full' also moves the state to the CPU, where it is already: then torch's FSDP crashes,
# with BatchNorm as with SN.
FULL_STATE = dict(
    state_dict_type='FULL_STATE_DICT',
    state_dict_config=dict(type='FullStateDictConfig'),
    optim_state_dict_config=dict(type='FullOptimStateDictConfig'),
)
WRAPPER = dict(type='MMFullyShardedDataParallel', device_id=torch.device('cpu'))


@pytest.mark.skipif(
    torch.cpu.Stream.__init__ is object.__init__, reason='FSDP of torch < 2.4 needs a GPU'
)
@on_ranks(2)
def test_mmengines_fsdp_strategy_saves_the_weights_of_one_process(rank: int, size: int) -> None:
    with folder_of_all(rank) as folder:
        runner = FlexibleRunner(
            model=Model(),
            work_dir=str(folder),
            train_dataloader=DATA,
            train_cfg=ONE_EPOCH,
            optim_wrapper=dict(
                optimizer=OPTIMIZER,
                constructor='ImportanceOptimWrapperConstructor',
                paramwise_cfg=dict(importance=dict(lr_mult=1)),
            ),
            strategy=dict(type='FSDPStrategy', state_dict_cfg=FULL_STATE, model_wrapper=WRAPPER),
            launcher='pytorch',
            default_hooks=dict(checkpoint=dict(type='ResumableCheckpointHook', interval=1)),
            custom_hooks=[
                dict(type='SwitchWeightsHook', interval=STEPS),
                dict(type='ImportanceHook'),
            ],
            randomness=dict(seed=0),
            experiment_name=str(folder).replace('/', '_'),
            log_level='ERROR',
        )
        runner.train()
        dist.barrier()
        checkpoint = safe_load(folder / 'epoch_1.pth')
        assert_same(checkpoint['state_dict'], train_alone()[-1])
        assert len(checkpoint['meta']['random_states']) == size
        (scalars,) = folder.glob('*/vis_data/scalars.json')
        learned = from_state_dict(checkpoint['state_dict'])
        assert from_log(scalars.read_text())[STEPS] == by_component(learned)
