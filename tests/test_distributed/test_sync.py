"""Synchronized layers against one process that sees the union of the batches."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import weakref
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
import reference
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from sn_mm import SwitchNorm1d, SwitchNorm2d, distributed, name_layers
from sn_mm.errors import InputError
from sn_mm.functional import switch_norm
from sn_mm.layer import SwitchNorm

C = 4
# The maps of three ranks; with two ranks, the first two.
SIZES = {
    'equal': [(2, C, 5, 6)] * 4,
    'uneven N': [(1, C, 5, 6), (4, C, 5, 6), (2, C, 5, 6)],
    'uneven N, H, W': [(3, C, 2, 6), (1, C, 9, 5), (2, C, 1, 1)],
    'one position on a rank': [(2, C, 1, 1), (2, C, 4, 4), (1, C, 1, 1)],
    'one pixel in all': [(1, C, 1, 1), (0, C, 4, 4), (0, C, 1, 1)],
    'first rank empty': [(0, C, 5, 6), (2, C, 5, 6), (1, C, 5, 6)],
    'last ranks empty': [(2, C, 5, 6), (0, C, 5, 6), (0, C, 1, 1)],
    'maps without pixels': [(2, C, 0, 6), (2, C, 5, 6), (1, C, 5, 6)],
    'all empty': [(0, C, 5, 6), (0, C, 3, 3), (0, C, 1, 1)],
}


class Collectives(TorchDispatchMode):
    """Names and sizes of the collectives run inside, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == 'c10d':
            tensors = [
                t for t in torch.utils._pytree.tree_flatten(args)[0] if isinstance(t, Tensor)
            ]
            name = func._schema.name.rpartition('::')[2]
            self.calls.append((name, max((t.numel() for t in tensors), default=0)))
        return func(*args, **(kwargs or {}))


def randomise(module: nn.Module) -> Any:
    """Learnable tensors away from their initial values, the same on all ranks."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p))
    return module


def make_maps(sizes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The maps of all ranks, the same on each: different means and spreads per map and channel."""
    maps = []
    for shape in sizes:
        per_map = shape[:2] + (1,) * (len(shape) - 2)
        spread, offset = torch.rand(per_map) + 0.5, torch.randn(per_map) * 2
        maps.append((torch.randn(shape) * spread + offset).to(dtype))
    return maps


def sum_over_ranks(grads: list[Tensor], group: Any = None) -> list[Tensor]:
    for grad in grads:
        dist.all_reduce(grad, group=group)
    return grads


def check_union(
    layer: SwitchNorm,
    maps: list[Tensor],
    rank: int,
    group: Any = None,
    input_requires_grad: bool = True,
    rtol: float = 1e-9,
    atol: float = 1e-9,
    **args: Any,
) -> None:
    """One step of ``layer`` on this rank's map: outputs, gradients, running statistics."""
    dys = [torch.randn_like(x) for x in maps]
    wide = [x.detach().double().requires_grad_() for x in maps]
    params = dict(layer.named_parameters())
    wide_params = {k: p.detach().double().requires_grad_() for k, p in params.items()}
    running = {
        k: None if t is None else t.clone()
        for k, t in (('running_mean', layer.running_mean), ('running_var', layer.running_var))
    }
    judge = reference.switch_norm(
        wide,
        **wide_params,
        **running,
        normalizers=layer.normalizers,
        correction=layer.correction,
        eps=float(layer.eps),
        **args,
    )
    total = sum((y * dy).sum() for y, dy in zip(judge.outputs, dys))
    expected = torch.autograd.grad(total, [*wide, *wide_params.values()])

    layer.zero_grad()
    x = maps[rank].detach().requires_grad_(input_requires_grad)
    y = layer(x)
    y.backward(dys[rank])
    found = sum_over_ranks([p.grad for p in params.values()], group)

    def close(found: Tensor, expected: Tensor, what: str) -> None:
        torch.testing.assert_close(
            found.double(), expected, rtol=rtol, atol=atol, msg=lambda m: f'{what}: {m}'
        )

    assert y.dtype == x.dtype
    close(y, judge.outputs[rank], 'output')
    if input_requires_grad:
        close(x.grad, expected[rank], 'gradient of the input')
    for name, p, grad in zip(params, found, expected[len(maps) :]):
        close(p, grad, f'gradient of {name}')
    for name in running:
        if running[name] is not None:
            close(getattr(layer, name), getattr(judge, name), name)


# --- equal to one process with the union of the batches ----------------------------------------


@on_ranks(2, 3, cases=[{'sizes': name} for name in SIZES])
def test_equals_one_process_with_the_union(rank, size, sizes):
    for normalizers in [('in', 'ln', 'bn'), ('bn',), ('in', 'bn'), ('ln', 'bn'), ('in', 'ln')]:
        layer = SwitchNorm2d(C, normalizers=normalizers, dtype=torch.float64)
        check_union(randomise(layer), make_maps(SIZES[sizes][:size]), rank)
    layer = SwitchNorm2d(C, correction=1, dtype=torch.float64)
    check_union(randomise(layer), make_maps(SIZES[sizes][:size]), rank)


@pytest.mark.slow
@on_ranks(5, 8)
def test_many_ranks_equal_one_process_with_the_union(rank, size):
    sizes = [(1 + rank % 3, C, 2 + rank % 4, 3) for rank in range(size - 1)]
    maps = make_maps([*sizes, (0, C, 2, 2)])
    check_union(randomise(SwitchNorm2d(C, dtype=torch.float64)), maps, rank)


@on_ranks(2, 3)
def test_equals_one_process_with_the_union_in_float32(rank, size):
    for sizes in SIZES.values():
        layer = randomise(SwitchNorm2d(C, eps=0.01))
        maps = make_maps(sizes[:size], torch.float32)
        check_union(layer, maps, rank, rtol=1e-4, atol=1e-4)


@on_ranks(2, 3)
def test_vectors_and_sequences(rank, size):
    for sizes in ([(3, C), (1, C), (0, C)], [(2, C, 5), (1, C, 1), (3, C, 2)]):
        layer = randomise(SwitchNorm1d(C, dtype=torch.float64))
        check_union(layer, make_maps(sizes[:size]), rank)
    vectors = SwitchNorm1d(C, normalizers=('bn',), dtype=torch.float64)
    check_union(randomise(vectors), make_maps([(1, C)] * size), rank)


@on_ranks(2, 3)
def test_memory_formats_may_differ_between_ranks(rank, size):
    maps = make_maps(SIZES['uneven N, H, W'][:size])
    maps[0] = maps[0].to(memory_format=torch.channels_last)
    check_union(randomise(SwitchNorm2d(C, dtype=torch.float64)), maps, rank)


@on_ranks(2)
def test_half_precision_maps(rank, size):
    for dtype in (torch.float16, torch.bfloat16):
        maps = make_maps(SIZES['uneven N'][:size], dtype)
        layer = randomise(SwitchNorm2d(C, eps=0.01))
        check_union(layer, maps, rank, rtol=torch.finfo(dtype).eps, atol=2e-4)


@on_ranks(2, 3)
def test_mean_far_from_zero(rank, size):
    """Float32 with |mean| >> std is as exact on several ranks as in one process."""
    maps = [torch.randn(shape) + 1e4 for shape in SIZES['uneven N'][:size]]
    dys = [torch.randn_like(x) for x in maps]
    parts = [len(x) for x in maps]
    for normalizers in [('bn',), ('in', 'ln', 'bn')]:
        state = {'running_mean': torch.zeros(C), 'running_var': torch.ones(C)}
        state.update(dict.fromkeys(('mean_weight', 'var_weight'), torch.ones(len(normalizers))))
        wide = [x.double().requires_grad_() for x in maps]
        judge = reference.switch_norm(wide, **state, normalizers=normalizers)
        total = sum((y * dy).sum() for y, dy in zip(judge.outputs, dys))
        exact = judge.outputs[rank], torch.autograd.grad(total, wide)[rank], judge.running_var

        def run(layer: SwitchNorm, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = x.detach().requires_grad_()
            y = layer(x)
            y.backward(dy)
            return y.detach(), x.grad, layer.running_var

        def errors(found: tuple[Tensor, ...], exact: tuple[Tensor, ...] = exact) -> list[float]:
            return [(a - b).abs().max().item() for a, b in zip(found, exact)]

        found = errors(run(SwitchNorm2d(C, normalizers=normalizers), maps[rank], dys[rank]))
        alone = SwitchNorm2d(C, normalizers=normalizers, sync=False)
        y, dx, var = run(alone, torch.cat(maps), torch.cat(dys))
        bound = errors((y.split(parts)[rank], dx.split(parts)[rank], var))
        assert all(a <= 4 * b + 2e-4 for a, b in zip(found, bound)), (found, bound)


@on_ranks(2, 3, cases=[{'momentum': 0.3}, {'momentum': None}])
def test_running_statistics_over_several_steps(rank, size, momentum):
    """Also what the counter says, and momentum=None; all ranks hold the same."""
    layer = SwitchNorm2d(C, momentum=momentum, dtype=torch.float64)
    alone = nn.BatchNorm2d(C, momentum=momentum, dtype=torch.float64)
    for step in range(3):
        maps = make_maps([(n + step, C, 4, 4) for n in range(1, size + 1)])
        layer(maps[rank])
        alone(torch.cat(maps))
        for name, buffer in alone.named_buffers():
            torch.testing.assert_close(getattr(layer, name), buffer)


@on_ranks(2, 3)
def test_all_ranks_empty_leaves_the_running_statistics_alone(rank, size):
    layer = randomise(SwitchNorm2d(C, momentum=None))
    layer(torch.randn(2, C, 3, 3))
    before = copy.deepcopy(dict(layer.named_buffers()))
    x = torch.zeros(0, C, 3 + rank, 3, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert all((p.grad == 0).all() for p in layer.parameters())
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, before[name]), name


# --- through DistributedDataParallel -----------------------------------------------------------


def make_net(norm: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, C, 1), norm(C), nn.ReLU(inplace=True), nn.Conv2d(C, C, 1), norm(C)
    ).double()


class Union(nn.Module):
    """The judge as a layer: lists of maps in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = SwitchNorm2d(channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        norm = self.norm
        result = reference.switch_norm(
            maps, **dict(norm.named_parameters()),
            running_mean=norm.running_mean, running_var=norm.running_var,
        )  # fmt: skip
        norm.running_mean, norm.running_var = result.running_mean, result.running_var
        return result.outputs


def run_union(net: nn.Sequential, maps: list[Tensor]) -> list[Tensor]:
    for layer in net:
        maps = layer(maps) if isinstance(layer, Union) else [layer(x) for x in maps]
    return maps


@on_ranks(2, 3, cases=[{'sizes': k} for k in ('uneven N, H, W', 'first rank empty', 'all empty')])
def test_training_through_ddp_equals_one_process_with_the_union(rank, size, sizes):
    """DDP averages gradients over ranks, so one process has the mean of the ranks' losses."""
    net = randomise(make_net(SwitchNorm2d))
    judge = make_net(Union)
    judge.load_state_dict(
        {
            k.replace('1.', '1.norm.').replace('4.', '4.norm.'): v
            for k, v in net.state_dict().items()
        }
    )
    parallel = DistributedDataParallel(net)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (net, judge)]
    for _ in range(3):
        maps = make_maps([(shape[0], 3, *shape[2:]) for shape in SIZES[sizes][:size]])
        for optimizer in optimizers:
            optimizer.zero_grad()
        parallel(maps[rank]).square().sum().backward()
        (sum(y.square().sum() for y in run_union(judge, maps)) / size).backward()
        for (name, p), q in zip(net.named_parameters(), judge.parameters()):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-10, msg=name)
        for optimizer in optimizers:
            optimizer.step()
    for i, j in ((1, 1), (4, 4)):
        for name in ('running_mean', 'running_var'):
            torch.testing.assert_close(getattr(net[i], name), getattr(judge[j].norm, name))
        assert net[i].num_batches_tracked == (0 if sizes == 'all empty' else 3)


class Branches(nn.Module):
    """A trunk with SN and two heads with SN, of which a rank may use one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, C, 1), SwitchNorm2d(C))
        self.head = nn.Sequential(nn.Conv2d(C, C, 1), SwitchNorm2d(C))
        self.extra = nn.Linear(C, 64)

    def forward(self, x: Tensor, extra: bool) -> Tensor:
        x = self.head(self.trunk(x).relu())
        return self.extra(x.mean((2, 3))).sum() + x.sum() if extra else x.square().sum()


@on_ranks(2, 3)
def test_ddp_with_parameters_that_only_some_ranks_use(rank, size):
    """DDP reduces some buckets early on some ranks; SN's collectives must not mix with them."""
    net = Branches()
    parallel = DistributedDataParallel(
        net, find_unused_parameters=True, bucket_cap_mb=1e-4, gradient_as_bucket_view=True
    )
    for step in range(4):
        parallel.zero_grad()
        parallel(torch.randn(2, 3, 4, 4), extra=(rank + step) % 2 == 0).backward()
        for p in net.parameters():
            mine = p.grad.clone()
            dist.broadcast(mine, 0)
            torch.testing.assert_close(p.grad, mine)


@on_ranks(2)
def test_ddp_with_a_layer_used_twice(rank, size):
    """Shared heads see several levels in one step."""
    layer = randomise(SwitchNorm2d(C, dtype=torch.float64))
    levels = [make_maps([(2, C, s, s + r) for r in range(size)]) for s in (4, 2)]
    state = {k: p.detach().clone().requires_grad_() for k, p in layer.named_parameters()}
    parallel = DistributedDataParallel(nn.ModuleList([layer]), static_graph=True)
    parallel.module.forward = lambda xs: sum(layer(x).square().sum() for x in xs)
    parallel([maps[rank] for maps in levels]).backward()
    outputs = [y for maps in levels for y in reference.switch_norm(maps, **state).outputs]
    (sum(y.square().sum() for y in outputs) / size).backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, state[name].grad)


# --- collectives -------------------------------------------------------------------------------


@on_ranks(2, 3)
def test_one_collective_forward_and_one_backward_of_few_numbers(rank, size):
    """On the CPU they travel with the ranks' comparison of four numbers, which goes on for ever."""
    for shape in [(2, C, 8, 8), (rank, C, 3, 3), (0, C, 1, 1)]:
        layer = SwitchNorm2d(C)
        with Collectives() as forward:
            y = layer(torch.randn(shape, requires_grad=True))
        with Collectives() as backward:
            y.sum().backward()
        assert forward.calls == backward.calls == [('allgather_', 4 + 2052)]


@on_ranks(2, cases=[{'ranks': 'few'}, {'ranks': 'many'}])
def test_numbers_that_do_not_travel_with_the_comparison_follow_it(rank, size, ranks):
    """Those of very wide layers in part, and between many ranks all."""
    channels, carried = 3000, 2052 if ranks == 'few' else 0
    layer = randomise(SwitchNorm2d(channels))
    maps = [torch.randn(2, channels, 2, 2) for _ in range(size)]
    x = maps[rank].requires_grad_()
    with mock.patch.object(distributed, '_FEW_RANKS', 8 if ranks == 'few' else 1):
        with Collectives() as forward:
            y = layer(x)
        with Collectives() as backward:
            y.square().sum().backward()
    words = 4 + 2052 if carried else 4
    assert forward.calls == [('allgather_', words), ('allreduce_', 2 * channels + 1 - carried)]
    assert backward.calls == [('allgather_', words), ('allreduce_', 2 * channels - 2 * carried)]
    judge = [m.detach().double().requires_grad_() for m in maps]
    state = {name: p.detach().double() for name, p in layer.named_parameters()}
    outputs = reference.switch_norm(judge, **state).outputs
    sum(o.square().sum() for o in outputs).backward()
    torch.testing.assert_close(y.double(), outputs[rank], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad.double(), judge[rank].grad, rtol=1e-3, atol=1e-3)


@on_ranks(2, cases=[{'wish': 'none'}, {'wish': 'by one rank'}])
def test_on_accelerators_the_ranks_compare_who_calls_in_a_groups_first_calls(rank, size, wish):
    """One rank that is told to compare always is enough: no rank decides by itself."""
    environment = {'SN_MM_CHECK_SYNC': '1'} if rank and wish != 'none' else {}
    with (
        mock.patch.object(distributed, 'CHECKED_CALLS', 3),
        mock.patch.object(distributed, '_FEW_RANKS', 1),  # nothing travels with the comparison
        mock.patch.object(distributed, '_wants_all_checks', lambda _: bool(environment)),
    ):
        group = dist.new_group([0, 1])
        with Collectives() as collectives:
            for _ in range(3):
                SwitchNorm2d(C, process_group=group)(torch.randn(2, C, 3, 3)).sum().backward()
    names = [name for name, _ in collectives.calls]
    checked = ['allgather_', 'allreduce_']
    assert names == (checked * 3 + ['allreduce_'] * 3 if wish == 'none' else checked * 6)


@on_ranks(2)
def test_one_environment_variable_ends_all_comparisons(rank, size):
    """They read numbers of the device, which no CUDA graph can capture."""
    group = dist.new_group([0, 1])  # of which nothing is compared yet
    layer = SwitchNorm2d(C, process_group=group, dtype=torch.float64)
    maps = make_maps(SIZES['uneven N'][:size])
    with mock.patch.dict(os.environ, SN_MM_CHECK_SYNC='0'), Collectives() as collectives:
        y = layer(maps[rank].requires_grad_())
        y.sum().backward()
    assert collectives.calls == [('allreduce_', 2 * C + 1), ('allreduce_', 2 * C)]
    judge = reference.switch_norm([m.detach() for m in maps], **dict(layer.named_parameters()))
    torch.testing.assert_close(y, judge.outputs[rank])


@pytest.mark.parametrize(('given', 'wants'), [('1', True), ('0', False), ('', False)])
def test_one_environment_variable_has_every_collective_checked(monkeypatch, given, wants):
    monkeypatch.setenv('SN_MM_CHECK_SYNC', given)
    assert distributed._wants_all_checks(torch.device('cuda')) is wants
    assert distributed._wants_all_checks(torch.device('cpu'))


@on_ranks(2, cases=[{'how': k} for k in ('unpickled', 'copied', 'loaded')])
def test_what_became_of_a_layer_on_one_rank_changes_no_collective(rank, size, how):
    layer = randomise(SwitchNorm2d(C, dtype=torch.float64))
    if not rank or how != 'loaded':  # the one that is made anew has no name
        name_layers(nn.ModuleDict({'norm': layer}))
    maps = make_maps(SIZES['uneven N'][:size])
    layer(maps[rank])
    if rank and how == 'unpickled':
        layer = pickle.loads(pickle.dumps(layer))
    elif rank and how == 'copied':
        layer = copy.deepcopy(copy.copy(layer))
    elif rank:
        layer = SwitchNorm2d(C, dtype=torch.float64)
        layer.load_state_dict(randomise(SwitchNorm2d(C, dtype=torch.float64)).state_dict())
    with Collectives() as collectives:
        y = layer(maps[rank])
    judge = reference.switch_norm(maps, **dict(layer.named_parameters()))
    torch.testing.assert_close(y, judge.outputs[rank])
    assert collectives.calls == [('allgather_', 4 + 2052)]


@on_ranks(2)
def test_second_derivatives_of_a_synchronized_layer_are_refused(rank, size):
    layer = SwitchNorm2d(C, dtype=torch.float64)
    x = make_maps(SIZES['uneven N'][:size])[rank].requires_grad_()
    with pytest.raises(InputError, match='sync=False'):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(InputError, match='sync=False'):
        torch.func.grad(lambda x: layer(x).square().sum())(x)
    y = layer(x)
    # torch 2.1 does not tell such batches, and refuses them by itself.
    told = hasattr(torch._C._functorch, 'is_legacy_batchedtensor')
    with pytest.raises(InputError if told else RuntimeError, match='sync=False' if told else None):
        torch.autograd.grad(y, x, torch.randn(3, *y.shape).double(), is_grads_batched=True)
    layer.sync = False
    torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    dist.barrier()


@on_ranks(2)
def test_a_script_of_a_synchronized_layer_in_training_is_refused(rank, size):
    """It would normalize with this rank's statistics."""
    layer = SwitchNorm2d(C)
    with pytest.raises(InputError, match='sync=False'):
        torch.jit.script(layer)
    x = torch.randn(2, C, 3, 3)
    torch.testing.assert_close(torch.jit.script(layer.eval())(x), layer(x))
    dist.barrier()


@on_ranks(2)
def test_no_collective_where_nothing_is_shared(rank, size):
    x = torch.randn(2, C, 3, 3, requires_grad=True)
    layers = {
        'eval': SwitchNorm2d(C).eval(),
        'eval without running statistics': SwitchNorm2d(C, track_running_stats=False).eval(),
        'sync=False': SwitchNorm2d(C, sync=False),
        'without bn': SwitchNorm2d(C, normalizers=('in', 'ln')),
        'sync=1': SwitchNorm2d(C, sync=1),
    }
    for name, layer in layers.items():
        layer(x)  # sync=1 may make its groups
        with Collectives() as collectives:
            y = layer(x)
            y.sum().backward()
        assert not collectives.calls, (name, collectives.calls)
        twin = copy.deepcopy(layer)
        twin.sync = False
        assert torch.equal(twin(x), layer(x)), name


@on_ranks(2)
def test_no_grad_still_pools(rank, size):
    maps = make_maps(SIZES['uneven N'][:size])
    layer = SwitchNorm2d(C, dtype=torch.float64)
    with torch.no_grad(), Collectives() as collectives:
        y = layer(maps[rank])
    expected = reference.switch_norm(
        maps, torch.ones(3), torch.ones(3), running_mean=torch.zeros(C), running_var=torch.ones(C)
    )
    torch.testing.assert_close(y, expected.outputs[rank])
    torch.testing.assert_close(layer.running_var, expected.running_var)
    assert layer.num_batches_tracked == 1
    assert collectives.calls == [('allgather_', 4 + 2052)]


@on_ranks(2, 3)
def test_a_rank_whose_input_needs_no_gradient_takes_part_in_backward(rank, size):
    """An image without proposals gives its head new_zeros, which no layer made."""
    maps = make_maps(SIZES['first rank empty'][:size])
    layer = randomise(SwitchNorm2d(C, dtype=torch.float64))
    check_union(layer, maps, rank, input_requires_grad=rank != 0)
    check_union(layer, make_maps(SIZES['equal'][:size]), rank, input_requires_grad=rank != 0)


@on_ranks(2, 3)
def test_frozen_parameters_and_a_rank_whose_input_needs_no_gradient(rank, size):
    """Whether a rank runs the backward collective must not depend on that rank's input."""
    maps = make_maps(SIZES['uneven N'][:size])
    layer = randomise(SwitchNorm2d(C, dtype=torch.float64)).requires_grad_(False)
    wide = [x.clone().requires_grad_() for x in maps]
    judge = reference.switch_norm(wide, **dict(layer.named_parameters()))
    x = maps[rank].requires_grad_(rank != 0)
    y = layer(x)
    y.square().sum().backward()
    if rank:
        total = sum(y.square().sum() for y in judge.outputs)
        torch.testing.assert_close(x.grad, torch.autograd.grad(total, wide[rank])[0])
    dist.barrier()


@on_ranks(2, cases=[{'reentrant': True}, {'reentrant': False}])
def test_activation_checkpointing(rank, size, reentrant):
    net = randomise(make_net(SwitchNorm2d))
    again = copy.deepcopy(net)
    for _ in range(2):
        x = make_maps([(2 + r, 3, 4, 4) for r in range(size)])[rank].requires_grad_()
        leaf = x.detach().requires_grad_()
        net(x).square().sum().backward()
        checkpoint(again, leaf, use_reentrant=reentrant).square().sum().backward()
        torch.testing.assert_close(leaf.grad, x.grad)
        for p, q in zip(again.parameters(), net.parameters()):
            torch.testing.assert_close(p.grad, q.grad)
        for t, u in zip(again.buffers(), net.buffers()):
            torch.testing.assert_close(t, u)
    assert again[1].num_batches_tracked == 2


@on_ranks(2)
def test_a_step_without_backward_leaves_nothing_behind(rank, size):
    """Nothing waits for Python's garbage collector: no cycle holds the input."""
    layer = SwitchNorm2d(C)
    gc.collect()
    gc.disable()
    try:
        x = torch.randn(2, C, 3, 3, requires_grad=True) * 1
        ref = weakref.ref(x)
        y = layer(x)
        del x, y
        assert ref() is None
    finally:
        gc.enable()


@on_ranks(1)
def test_one_rank_is_on_its_own(rank, size):
    x = torch.randn(2, C, 3, 3, requires_grad=True)
    for sync in (True, 1, 2):
        with Collectives() as collectives:
            SwitchNorm2d(C, sync=sync)(x).sum().backward()
        assert not collectives.calls
    SwitchNorm2d(C, process_group=dist.group.WORLD)(x).sum().backward()


# --- groups ------------------------------------------------------------------------------------


@on_ranks(4)
def test_groups_of_two_consecutive_ranks(rank, size):
    maps = make_maps([(2, C, 3, 3), (1, C, 5, 4), (3, C, 2, 2), (0, C, 2, 2)])
    pairs = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    first = rank // 2 * 2
    for _ in range(2):
        layer = randomise(SwitchNorm2d(C, sync=2, dtype=torch.float64))
        check_union(layer, maps[first : first + 2], rank - first, pairs[rank // 2])


@on_ranks(4)
def test_one_group_of_all_ranks(rank, size):
    maps = make_maps([(1, C, 3, 3), (1, C, 5, 4), (3, C, 2, 2), (0, C, 2, 2)])
    check_union(randomise(SwitchNorm2d(C, sync=4, dtype=torch.float64)), maps, rank)


@on_ranks(4)
def test_number_of_ranks_that_does_not_divide(rank, size):
    for k in (3, 8):
        with pytest.raises(ValueError) as error:
            SwitchNorm2d(C, sync=k)(torch.randn(2, C, 3, 3))
        assert all(part in str(error.value) for part in (f'sync={k}', 'got 4 ranks'))
        with torch.no_grad():
            SwitchNorm2d(C, sync=k).eval()(torch.randn(2, C, 3, 3))
    dist.barrier()


@on_ranks(3)
def test_process_group_of_some_ranks(rank, size):
    group = dist.new_group([0, 2])
    maps = make_maps(SIZES['uneven N, H, W'])
    layer = randomise(SwitchNorm2d(C, process_group=group, dtype=torch.float64))
    if rank == 1:  # not in the group: on its own
        with Collectives() as collectives:
            y = layer(maps[1])
        expected = reference.switch_norm([maps[1]], **dict(layer.named_parameters()))
        torch.testing.assert_close(y, expected.outputs[0])
        assert not collectives.calls
    else:
        check_union(layer, [maps[0], maps[2]], rank // 2, group)
    dist.barrier()


@on_ranks(3)
def test_functional_takes_a_process_group(rank, size):
    maps = make_maps(SIZES['uneven N, H, W'])
    logits = torch.randn(2, 3, dtype=torch.float64)
    y = switch_norm(maps[rank], *logits, training=True, process_group=dist.group.WORLD)
    torch.testing.assert_close(y, reference.switch_norm(maps, *logits).outputs[rank])


@on_ranks(2)
def test_copies_of_a_layer_with_a_process_group(rank, size):
    """A copy (an average of weights, say) pools over the same ranks; groups are not pickled."""
    layer = SwitchNorm2d(C, process_group=dist.new_group([0, 1]), dtype=torch.float64)
    maps = make_maps(SIZES['uneven N'][:size])
    layer(maps[rank])
    twin = copy.deepcopy(layer)
    assert twin.process_group is layer.process_group
    assert torch.equal(twin(maps[rank]), layer(maps[rank]))
    loaded = pickle.loads(pickle.dumps(layer))
    assert loaded.process_group is None
    with pytest.warns(UserWarning, match='had a process_group, .* pools over all ranks now'):
        loaded(maps[rank])
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(loaded.eval()(maps[rank]), layer.eval()(maps[rank]))


@on_ranks(2, 3)
def test_ranks_that_disagree_on_channels(rank, size):
    channels = C + (rank == 1)
    layer = SwitchNorm2d(channels, process_group=dist.new_group(list(range(size))))
    for _ in range(2):
        with pytest.raises(ValueError) as error:
            layer(torch.randn(2, channels, 3, 3))
        for given in (C, C + 1):
            assert f'a layer without a name (num_features={given}' in str(error.value)
    assert layer.num_batches_tracked == 0
    dist.barrier()
    SwitchNorm2d(C)(torch.randn(2, C, 3, 3)).sum().backward()


@on_ranks(2, 3)
def test_ranks_that_meet_in_different_layers_are_told_which(rank, size):
    """Of the same channels, whose statistics would mix."""
    net = name_layers(nn.ModuleDict({'teacher': SwitchNorm2d(C), 'student': SwitchNorm2d(C)}))
    x = torch.randn(2, C, 3, 3)
    with pytest.raises(InputError) as error:
        net['student' if rank == 1 else 'teacher'](x)
    said = str(error.value)
    others = 'rank 0' if size == 2 else 'ranks 0, 2'
    assert f'got {others}: teacher (num_features={C}) forward' in said
    assert f'rank 1: student (num_features={C}) forward' in said and 'sync=False' in said
    with pytest.raises(InputError) as error:
        y = net['teacher'](x)
        net['student'](x) if rank == 1 else y.sum().backward()
    assert f'{others}: teacher (num_features={C}) backward' in str(error.value)
    assert f'rank 1: student (num_features={C}) forward' in str(error.value)
    assert not net['student'].num_batches_tracked
    y = net['teacher'](x)
    y.sum().backward()
    copies = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    assert all(twin['student'].sync_name == 'student' for twin in copies)
    assert not any('name' in key for key in net.state_dict())


@on_ranks(2)
def test_layers_without_names_are_told_apart_by_their_settings(rank, size):
    one = SwitchNorm2d(C, normalizers=('bn',) if rank else ('ln', 'bn'))
    with pytest.raises(InputError, match="normalizers=\\['ln', 'bn'\\].*rank 1.*\\['bn'\\]"):
        one(torch.randn(2, C, 3, 3))
    with pytest.raises(InputError, match='eps=0.5.*rank 1.*eps=0.25'):
        SwitchNorm2d(C, eps=0.25 if rank else 0.5)(torch.randn(2, C, 3, 3))
    dist.barrier()


@on_ranks(2)
def test_a_layer_in_double_on_one_rank_alone_is_refused(rank, size):
    dtype = torch.float64 if rank else torch.float32
    y = SwitchNorm2d(C, dtype=dtype)(torch.randn(2, C, 3, 3, dtype=dtype))
    with pytest.raises(InputError, match=r'0: .* backward \(float32\); rank 1: .* \(float64\)'):
        y.sum().backward()
    dist.barrier()


@on_ranks(2)
def test_a_collective_that_fails_ends_with_the_layers_name(rank, size):
    """A rank does not come in time: gloo's own error names no layer."""
    group = dist.new_group([0, 1], timeout=timedelta(seconds=1))
    net = nn.ModuleDict({'bn1': SwitchNorm2d(C, process_group=group)})
    name_layers(net)['bn1'](torch.randn(2, C, 3, 3))
    y = net['bn1'](torch.randn(2, C, 3, 3, requires_grad=True))
    if rank == 0:
        with pytest.raises(RuntimeError) as error:
            y.sum().backward()
        said = str(error.value)
        assert said.startswith(f'bn1 (num_features={C}) waited backward for the ranks [0, 1]')
        assert 'on rank 0' in said and 'have gone another way' in said and '\n' not in said
        assert ' '.join(str(error.value.__cause__).split()) in said
    dist.barrier()


@on_ranks(2)
def test_a_new_process_group_after_the_old_one(rank, size):
    """The same layers go on after destroy_process_group and another init."""
    layers = [SwitchNorm2d(C, sync=sync, dtype=torch.float64) for sync in (True, 2)]
    maps = make_maps(SIZES['uneven N'][:size])
    before = [layer(maps[rank]) for layer in layers]
    store = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    alone = layers[0](maps[rank])
    dist.init_process_group('gloo', store=dist.PrefixStore('again', store), rank=rank,
                            world_size=size)  # fmt: skip
    for layer, expected in zip(layers, before):
        assert torch.equal(layer(maps[rank]), expected)
    assert not torch.allclose(alone, before[0])
