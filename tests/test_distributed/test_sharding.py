"""Models that FSDP shards: the importance is read in full, and nothing is read wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn
from torch.distributed import fsdp

from sn_mm import SwitchNorm2d
from sn_mm.analysis.importance import from_model
from sn_mm.errors import InputError
from sn_mm.model.batch_average import measure_batch_average
from sn_mm.sharding import full_weights, is_sharded

needs_fsdp1 = pytest.mark.skipif(
    torch.cpu.Stream.__init__ is object.__init__, reason='FSDP of torch < 2.4 needs a GPU'
)
needs_fsdp2 = pytest.mark.skipif(
    not hasattr(fsdp, 'fully_shard') or not hasattr(torch.cpu.Stream, 'record_event'),
    reason='FSDP2 of torch < 2.7 has no CPU, or there is none',
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), SwitchNorm2d(3)) for _ in range(2)))
    for layer in (model[0][1], model[1][1]):
        nn.init.normal_(layer.mean_weight)
        nn.init.normal_(layer.var_weight)
    return model


def wrap_fsdp1(model: nn.Sequential, **options: Any) -> nn.Module:
    def wrap(module: nn.Module) -> nn.Module:
        return fsdp.FullyShardedDataParallel(module, device_id=torch.device('cpu'), **options)

    model[0] = wrap(model[0])
    model[1][1] = wrap(model[1][1])
    model = wrap(model)
    model(torch.ones(1, 3, 2, 2))  # which gathers the weights and lets them go again
    return model


def layers_of(model: nn.Module) -> list[SwitchNorm2d]:
    return [module for module in model.modules() if isinstance(module, SwitchNorm2d)]


@needs_fsdp1
@on_ranks(2, cases=[{'use_orig_params': False}, {'use_orig_params': True}])
def test_fsdp1s_importance_is_read_in_full_or_not_at_all(
    rank: int, size: int, use_orig_params: bool
) -> None:
    expected = from_model(network())
    model = wrap_fsdp1(network(), use_orig_params=use_orig_params)
    assert is_sharded(model)
    with full_weights(model):
        assert from_model(model) == expected
        assert [layer.importance() for layer in layers_of(model)] == [*expected.values()]
    reads = [lambda: from_model(model)] + [layer.importance for layer in layers_of(model)]
    refused = 0
    for read in reads:  # this rank may hold the whole of a layer's, by chance
        try:
            found = read()
            assert found in (expected, *expected.values())
        except InputError as error:
            assert 'summon_full_params' in str(error)
            refused += 1
    counts = torch.tensor([refused])
    dist.all_reduce(counts)
    assert counts > 0


@needs_fsdp2
@on_ranks(2)
def test_fsdp2s_importance_is_read_in_full(rank: int, size: int) -> None:
    expected = from_model(network())
    model = network()
    mesh = dist.device_mesh.init_device_mesh('cpu', (size,))
    for module in (model[0], model):
        fsdp.fully_shard(module, mesh=mesh)
    assert is_sharded(model)
    with full_weights(model):
        assert from_model(model) == expected
    assert [layer.importance() for layer in layers_of(model)] == [*expected.values()]
    with pytest.raises(InputError, match='FSDP shards is measured from its checkpoint'):
        measure_batch_average(model, [torch.ones(1, 3, 2, 2)], lambda net, batch: net(batch))


@needs_fsdp1
@on_ranks(2)
def test_fsdp1_has_its_batch_average_from_a_checkpoint(rank: int, size: int) -> None:
    model = wrap_fsdp1(network())
    with pytest.raises(InputError, match='FSDP shards is measured from its checkpoint'):
        measure_batch_average(model, [torch.ones(1, 3, 2, 2)], lambda net, batch: net(batch))


def test_a_whole_model_is_not_sharded() -> None:
    model = network()
    assert not is_sharded(model)
    with full_weights(model):
        assert from_model(model) == from_model(network())
