"""convert_switch_norm: the norms that it replaces, keeps, leaves alone or refuses."""

import copy
import logging
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations, prune

from sn_mm import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, convert_switch_norm
from sn_mm.errors import InputError

SHAPES = {1: (3, 6, 10), 2: (3, 6, 5, 4), 3: (2, 6, 3, 4, 2)}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
SWITCH_NORMS = {1: SwitchNorm1d, 2: SwitchNorm2d, 3: SwitchNorm3d}
STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


def randomize(model):
    """Weights, biases and statistics as after training, none of them at its default."""
    with torch.no_grad():
        for module in model.modules():
            if getattr(module, 'weight', None) is not None and module.weight.dim() == 1:
                module.weight.uniform_(0.5, 1.5)
                if module.bias is not None:
                    module.bias.normal_()
            if getattr(module, 'running_mean', None) is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(17)
    return model


def all_weight_on(model, scope):
    """The softmax of every SN in ``model`` puts exactly 1 on ``scope``."""
    for module in model.modules():
        if isinstance(module, SwitchNorm):
            for logits in (module.mean_weight, module.var_weight):
                chosen = [0.0 if s == scope else -1e4 for s in module.normalizers]
                logits.data.copy_(torch.tensor(chosen))
    return model


def assert_same_state(norm, expected):
    """Every entry of ``expected``, a state dict, is unchanged in ``norm``."""
    state = norm.state_dict()
    assert set(state) - set(expected) == {'mean_weight', 'var_weight'}
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)


# --- norms that are replaced, and the parts that are kept


@pytest.mark.parametrize('dim', (1, 2, 3))
@pytest.mark.parametrize('training', (True, False))
def test_batch_norm_keeps_everything(dim, training):
    old = randomize(BATCH_NORMS[dim](6, eps=1e-3, momentum=0.3)).train(training)
    kept = {name: getattr(old, name) for name in ('weight', 'bias', *STATISTICS)}
    state = {k: v.clone() for k, v in old.state_dict().items()}
    new = convert_switch_norm(nn.Sequential(old))[0]

    assert type(new) is SWITCH_NORMS[dim]
    assert all(getattr(new, name) is value for name, value in kept.items())
    assert_same_state(new, state)
    assert (new.eps, new.momentum, new.training) == (1e-3, 0.3, training)
    assert (new.affine, new.track_running_stats) == (True, True)
    new(torch.randn(SHAPES[dim])).sum().backward()
    assert new.weight.grad is not None and new.mean_weight.grad is not None


@pytest.mark.parametrize('dim', (1, 2, 3))
@pytest.mark.parametrize('affine', (True, False))
@pytest.mark.parametrize('tracked', (True, False))
def test_instance_norm_keeps_what_it_has(dim, affine, tracked):
    old = INSTANCE_NORMS[dim](6, eps=1e-3, affine=affine, track_running_stats=tracked)
    weight, bias, mean = randomize(old).weight, old.bias, old.running_mean
    new = convert_switch_norm(nn.Sequential(old))[0]

    assert type(new) is SWITCH_NORMS[dim]
    assert new.weight is weight and new.bias is bias and new.eps == 1e-3
    assert new.affine is affine
    if tracked:
        assert new.running_mean is mean
    else:  # evaluation of the batch scope needs them
        assert new.running_mean.abs().max() == 0 and new.running_var.min() == 1
    x = torch.randn(SHAPES[dim])
    want = INSTANCE_NORMS[dim](6, eps=1e-3)(x)
    if affine:
        shape = (6, *[1] * dim)
        want = want * weight.reshape(shape) + bias.reshape(shape)
    torch.testing.assert_close(all_weight_on(new, 'in')(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('affine', (True, False))
@pytest.mark.parametrize('shape', (*SHAPES.values(), (3, 6)))
def test_group_norm_becomes_switch_norm_of_any_dimension(affine, shape):
    old = randomize(nn.GroupNorm(1, 6, eps=1e-3, affine=affine))
    weight, bias, x = old.weight, old.bias, torch.randn(shape)
    want = old(x)
    new = convert_switch_norm(nn.Sequential(old))[0]

    assert type(new) is SwitchNorm and new.num_features == 6
    assert new.weight is weight and new.bias is bias and new.momentum == 0.1
    torch.testing.assert_close(all_weight_on(new, 'ln')(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shape', (*SHAPES.values(), (3, 6)))
def test_sync_batch_norm_becomes_switch_norm_of_any_dimension(shape):
    old = randomize(nn.SyncBatchNorm(6, momentum=None))
    state = {k: v.clone() for k, v in old.state_dict().items()}
    new = convert_switch_norm(nn.Sequential(old))[0]

    assert type(new) is SwitchNorm and new.momentum is None and new.sync is True
    assert_same_state(new, state)
    assert new(torch.randn(shape)).shape == shape
    assert new.num_batches_tracked == 18


@pytest.mark.parametrize('training', (True, False))
def test_batch_norm_without_running_statistics_stays_without(training):
    old = randomize(nn.BatchNorm2d(6, track_running_stats=False)).train(training)
    x = torch.randn(SHAPES[2])
    want = old(x)
    new = convert_switch_norm(nn.Sequential(old))[0]

    assert new.running_mean is None and not new.track_running_stats
    torch.testing.assert_close(all_weight_on(new, 'bn')(x), want)


def test_batch_norm_that_stopped_tracking_still_evaluates_with_its_statistics():
    old = randomize(nn.BatchNorm2d(6)).eval()
    old.track_running_stats = False  # torch goes on using the buffers in evaluation
    x = torch.randn(SHAPES[2])
    want = old(x)
    kept = old.running_mean.clone()
    new = all_weight_on(convert_switch_norm(nn.Sequential(old)), 'bn')
    torch.testing.assert_close(new(x), want)
    new.train()(x)
    assert torch.equal(new[0].running_mean, kept)


@pytest.mark.parametrize('layer_args', ({}, {'sync': False}))
def test_batch_norm_without_affine_stays_without(layer_args):
    new = convert_switch_norm(nn.BatchNorm2d(6, affine=False), **layer_args)
    assert new.weight is None and new.bias is None and not new.affine
    assert set(dict(new.named_parameters())) == {'mean_weight', 'var_weight'}


@pytest.mark.parametrize('scope', ('ln', 'bn'))
def test_norm_without_bias_stays_without(scope):
    if scope == 'bn':
        old = nn.BatchNorm2d(6)
        old.register_parameter('bias', None)  # as bias=False of newer torch does
    else:
        old = nn.GroupNorm(1, 6)
        old.register_parameter('bias', None)
    weight, x = randomize(old).weight, torch.randn(SHAPES[2])
    want = old(x)
    new = convert_switch_norm(nn.Sequential(old))[0]
    assert new.weight is weight and new.bias is None
    torch.testing.assert_close(all_weight_on(new, scope)(x), want, rtol=1e-4, atol=1e-5)


def test_bias_false_of_newer_torch():
    try:
        old = nn.BatchNorm2d(6, bias=False)
    except TypeError:
        pytest.skip("this torch's BatchNorm2d has no bias argument")
    new = convert_switch_norm(old)
    assert new.weight is old.weight and new.bias is None
    assert set(new.state_dict()) == {*old.state_dict(), 'mean_weight', 'var_weight'}


@pytest.mark.parametrize('dtype', (torch.half, torch.bfloat16, torch.double))
def test_dtype_is_kept(dtype):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.BatchNorm2d(6),
        nn.InstanceNorm2d(6),
        nn.GroupNorm(2, 6, affine=False),
    ).to(dtype)
    kept = {k: v.dtype for k, v in model.state_dict().items()}
    new = convert_switch_norm(model)
    added = {k: v.dtype for k, v in new.state_dict().items() if 'num_batches' not in k}
    assert set(added.values()) == {dtype}
    assert {k: new.state_dict()[k].dtype for k in kept} == kept
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    try:
        model[0](x)
    except RuntimeError as error:
        pytest.skip(f'this torch: {error}')
    y = new(x)
    assert y.dtype == dtype and y.isfinite().all()


def test_device_is_kept():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.InstanceNorm2d(6)).to('meta')
    new = convert_switch_norm(model)
    tensors = [*new.parameters(), *new.buffers()]
    assert len(tensors) == 2 + (4 + 3) + (2 + 3)
    assert all(t.device.type == 'meta' for t in tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_cuda_device_is_kept():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.InstanceNorm2d(6)).cuda()
    new = convert_switch_norm(model)
    assert all(t.is_cuda for t in [*new.parameters(), *new.buffers()])
    assert new(torch.randn(2, 3, 8, 8, device='cuda')).is_cuda


def test_requires_grad_is_kept_and_the_new_weights_follow_it():
    model = nn.Sequential(*[nn.BatchNorm2d(6) for _ in range(3)])
    model[0].requires_grad_(False)
    model[1].bias.requires_grad_(False)
    new = convert_switch_norm(model)
    names = ('weight', 'bias', 'mean_weight', 'var_weight')
    given = [[getattr(norm, name).requires_grad for name in names] for norm in new]
    assert given == [[False] * 4, [True, False, True, True], [True] * 4]


def test_training_mode_is_kept_layer_by_layer():
    model = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.GroupNorm(2, 6))
    model[1].eval()
    assert [m.training for m in convert_switch_norm(model)] == [True, False, True]


def test_process_group_of_sync_batch_norm_is_kept(tmp_path):
    dist.init_process_group('gloo', f'file://{tmp_path}/store', world_size=1, rank=0)
    try:
        group = dist.new_group([0])
        model = nn.Sequential(nn.SyncBatchNorm(6, process_group=group), nn.SyncBatchNorm(6))
        first, second = convert_switch_norm(copy.copy(model))
        assert first.process_group is group and second.process_group is None
        alone = convert_switch_norm(nn.SyncBatchNorm(6, process_group=group), sync=False)
        assert alone.process_group is None and alone.sync is False
    finally:
        dist.destroy_process_group()


# --- where in the model


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(6)
        self.layers = nn.ModuleList([nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)])
        self.branches = nn.ModuleDict({'a': nn.InstanceNorm2d(6), 'b': nn.Identity()})

    def forward(self, x):
        x = self.bn1(x)
        for layer in self.layers:
            x = layer(x)
        return self.branches['b'](self.branches['a'](x))


def test_nested_containers():
    model = nn.Sequential(Block(), nn.Sequential(nn.Sequential(nn.GroupNorm(2, 6)), Block()))
    names = [name for name, _ in model.named_modules()]
    new = convert_switch_norm(model)
    assert new is model
    assert [name for name, _ in new.named_modules()] == names
    assert sum(isinstance(m, SwitchNorm) for m in new.modules()) == 7
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.GroupNorm)) for m in new.modules())
    assert new(torch.randn(SHAPES[2])).isfinite().all()


@pytest.mark.parametrize(
    'norm', (nn.BatchNorm2d(6), nn.SyncBatchNorm(6), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6))
)
def test_a_norm_as_the_model(norm):
    new = convert_switch_norm(norm)
    assert isinstance(new, SwitchNorm) and new.weight is norm.weight
    assert not isinstance(norm, SwitchNorm)


def test_shared_modules_stay_shared():
    norm, block = nn.BatchNorm2d(6), Block()
    model = nn.Sequential(norm, nn.ReLU(), norm, block, nn.Sequential(block, norm))
    lines = []
    new = convert_switch_norm(model, report=lines.append)
    assert isinstance(new[0], SwitchNorm)
    assert new[0] is new[2] is new[4][1] and new[3] is new[4][0]
    assert len(lines) == 1 + 3 + 1  # the shared one, those of the block, the count


def test_shared_parameters_stay_shared():
    model = nn.Sequential(nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    model[1].weight = model[0].weight
    new = convert_switch_norm(model)
    assert new[0].weight is new[1].weight and new[0].bias is not new[1].bias


def test_layer_norm_and_switch_norm_are_untouched():
    model = nn.Sequential(nn.LayerNorm(6), SwitchNorm2d(6), SwitchNorm(6), nn.BatchNorm2d(6))
    before = list(model)
    after = convert_switch_norm(model)
    assert all(a is b for a, b in zip(after[:3], before)) and after[3] is not before[3]


@pytest.mark.parametrize(
    ('model', 'select'),
    (
        (nn.Sequential(nn.LayerNorm(6), nn.LocalResponseNorm(2)), lambda name: True),
        (nn.Sequential(SwitchNorm2d(6)), lambda name: True),
        (nn.Sequential(nn.BatchNorm2d(6)), lambda name: False),
    ),
    ids=('no norms', 'converted already', 'none selected'),
)
def test_a_conversion_of_nothing_is_refused(model, select):
    before, lines = list(model), []
    with pytest.raises(InputError, match='^no norm to convert: the model has no BatchNorm'):
        convert_switch_norm(model, report=lines.append, select=select)
    assert list(model) == before and not lines


def test_a_conversion_that_leaves_all_norms_is_refused_and_names_them():
    model = nn.Sequential(*(patched(nn.BatchNorm2d(6)) for _ in range(4)))
    with pytest.raises(InputError, match=r'the model has 0: .* own forward; 1: .*; 2: .*; \.\.\.$'):
        convert_switch_norm(model)


def test_optimizer_state_of_the_old_parameters_still_applies():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model[1].weight.clone()
    model = convert_switch_norm(model)
    model(torch.randn(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)


# --- arguments


def test_layer_args_override_what_the_old_layers_had():
    model = nn.Sequential(nn.BatchNorm2d(6, momentum=0.3, eps=1e-3), nn.GroupNorm(2, 6))
    weight = model[0].weight
    new = convert_switch_norm(
        model, normalizers=('ln', 'in'), sync=False, momentum=0.2, correction=1
    )
    for norm in new:
        assert norm.normalizers == ('in', 'ln') and norm.mean_weight.shape == (2,)
        assert norm.sync is False and norm.momentum == 0.2 and norm.correction == 1
        assert norm.running_mean is None
    assert new[0].eps == 1e-3 and new[0].weight is weight
    y = new(torch.randn(SHAPES[2]))
    assert y.isfinite().all()


def test_affine_can_be_added_or_taken_away():
    model = nn.Sequential(nn.InstanceNorm2d(6), nn.BatchNorm2d(6))
    new = convert_switch_norm(copy.deepcopy(model), affine=True)
    assert new[0].weight.tolist() == [1.0] * 6 and new[0].bias.tolist() == [0.0] * 6
    assert all(m.weight is None for m in convert_switch_norm(model, affine=False))


def test_bias_can_be_taken_away_or_added():
    old = randomize(nn.BatchNorm2d(6))
    new = convert_switch_norm(copy.deepcopy(old), bias=False)
    assert torch.equal(new.weight, old.weight) and new.bias is None
    old.register_parameter('bias', None)
    assert convert_switch_norm(old, bias=True).bias.tolist() == [0.0] * 6


@pytest.mark.parametrize(
    ('layer_args', 'error', 'message'),
    (
        ({'normalizers': ('in', 'gn')}, ValueError, 'normalizers'),
        ({'normalizers': ()}, ValueError, 'normalizers'),
        ({'sync': 0}, ValueError, 'sync'),
        ({'correction': 2}, ValueError, 'correction'),
        ({'momentun': 0.1}, TypeError, 'momentun'),
    ),
)
def test_invalid_layer_args_leave_the_model_as_it_was(layer_args, error, message):
    model = nn.Sequential(Block(), nn.GroupNorm(2, 6))
    before = dict(model.named_modules())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    lines = []
    with pytest.raises(error, match=message):
        convert_switch_norm(model, report=lines.append, **layer_args)
    assert dict(model.named_modules()) == before and lines == []
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_process_group_by_position_is_refused():
    """SyncBatchNorm.convert_sync_batchnorm takes one there; here it would be the report."""
    model = nn.Sequential(nn.BatchNorm2d(6))
    with pytest.raises(TypeError):
        convert_switch_norm(model, None)
    assert isinstance(model[0], nn.BatchNorm2d)


@pytest.mark.parametrize(
    'lazy',
    (nn.LazyBatchNorm2d, nn.LazyBatchNorm1d, nn.LazyInstanceNorm2d),
    ids=lambda c: c.__name__,
)
def test_lazy_norm_is_refused_by_name_until_its_first_input(lazy):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # "lazy modules are a new feature"
        model = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(lazy()))
    before = dict(model.named_modules())
    with pytest.raises(InputError, match=rf'1\.0: {lazy.__name__}.*first input'):
        convert_switch_norm(model)
    assert dict(model.named_modules()) == before

    model[1](torch.randn(SHAPES[1 if '1d' in lazy.__name__ else 2]))
    new = convert_switch_norm(model)
    assert isinstance(new[1][0], SwitchNorm) and new[1][0].num_features == 6


# --- the report


def test_report_names_each_norm_and_the_count():
    lines = []
    convert_switch_norm(nn.Sequential(Block(), nn.SyncBatchNorm(6)), report=lines.append)
    assert lines == [
        '0.bn1: BatchNorm2d -> SwitchNorm2d',
        '0.layers.1: BatchNorm2d -> SwitchNorm2d',
        '0.branches.a: InstanceNorm2d -> SwitchNorm2d',
        '1: SyncBatchNorm -> SwitchNorm',
        'Norms converted to Switchable Normalization: 4',
    ]


def test_report_goes_to_the_log_by_default(caplog):
    with caplog.at_level(logging.INFO, logger='sn_mm'):
        convert_switch_norm(nn.BatchNorm1d(6))
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ('sn_mm.model.convert', 'INFO', 'model: BatchNorm1d -> SwitchNorm1d'),
        ('sn_mm.model.convert', 'INFO', 'Norms converted to Switchable Normalization: 1'),
    ]


# --- nothing is lost without a word


def test_hooks_move_to_the_new_layer_with_their_handles():
    model, calls = nn.Sequential(nn.BatchNorm2d(6)), []

    def named(name):
        return lambda *args: calls.append((name, type(args[0]).__name__))

    old = model[0]
    handles = [
        old.register_forward_pre_hook(named('pre')),
        old.register_forward_hook(named('post')),
        old.register_full_backward_hook(named('backward')),
        old.register_forward_hook(lambda m, args, kwargs, y: None, with_kwargs=True),
    ]
    old.register_load_state_dict_post_hook(named('loaded'))

    new = convert_switch_norm(model)
    x = torch.randn(SHAPES[2], requires_grad=True)
    new(x).square().sum().backward()
    new.load_state_dict(new.state_dict())
    expected = [(name, 'SwitchNorm2d') for name in ('pre', 'post', 'backward', 'loaded')]
    assert calls == expected

    for handle in handles:
        handle.remove()
    calls.clear()
    new(x).square().sum().backward()
    assert calls == []


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: the activation is a part of the norm."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.act = nn.ReLU()

    def forward(self, input):
        return self.act(super().forward(input))


class RenamedBatchNorm2d(nn.BatchNorm2d):
    """A subclass that adds nothing of its own."""


def pruned(norm):
    prune.random_unstructured(norm, 'weight', 0.5)
    return norm


def patched(norm):
    norm.forward = lambda input: input
    return norm


def with_buffer(norm):
    norm.register_buffer('scale', torch.ones(()))
    return norm


@pytest.mark.parametrize(
    ('norm', 'extras'),
    (
        (BatchNormAct2d(6), 'own forward'),
        (patched(nn.BatchNorm2d(6)), 'own forward'),
        (pruned(nn.BatchNorm2d(6)), 'weight_mask, weight_orig'),
        (parametrizations.weight_norm(nn.GroupNorm(2, 6), dim=None), 'parametrizations'),
        (with_buffer(nn.InstanceNorm2d(6)), 'scale'),
    ),
    ids=('activation', 'patched', 'pruned', 'parametrized', 'buffer'),
)
def test_norms_that_do_more_are_left_and_reported(norm, extras):
    model, lines = nn.Sequential(norm, nn.BatchNorm2d(6)), []
    x = torch.randn(SHAPES[2])
    want = norm.eval()(x)
    line = f'0: {type(norm).__name__} left as it is, SN would drop its {extras}'
    with pytest.warns(UserWarning, match=f'^1 norms are not converted: {line}$') as record:
        new = convert_switch_norm(model, report=lines.append)
    assert record[0].filename == __file__
    assert new[0] is norm and isinstance(new[1], SwitchNorm2d)
    torch.testing.assert_close(new[0](x), want)
    assert lines[0] == line
    assert lines[-1].endswith(': 1')


def test_a_subclass_that_adds_nothing_is_converted():
    assert type(convert_switch_norm(RenamedBatchNorm2d(6))) is SwitchNorm2d


# --- whole networks


def mmdet_resnet(norm_cfg, depth=18, base_channels=16, **kwargs):
    from mmdet.models.backbones import ResNet

    return ResNet(depth, base_channels=base_channels, norm_cfg=norm_cfg, norm_eval=False, **kwargs)


@pytest.mark.parametrize(
    ('norm_cfg', 'scope'),
    (
        ({'type': 'BN'}, 'bn'),
        ({'type': 'SyncBN'}, 'bn'),
        ({'type': 'GN', 'num_groups': 1}, 'ln'),
        ({'type': 'IN', 'affine': True}, 'in'),
    ),
    ids=('BN', 'SyncBN', 'GN(1)', 'IN'),
)
def test_all_weight_on_one_scope_equals_the_original_resnet(norm_cfg, scope):
    torch.manual_seed(0)
    original = randomize(mmdet_resnet(norm_cfg)).double()
    new = all_weight_on(convert_switch_norm(copy.deepcopy(original)), scope)
    assert sum(isinstance(m, SwitchNorm) for m in new.modules()) == 20
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    for training in (True, False):  # the statistics of the first step serve the second
        original.train(training)
        new.train(training)
        if norm_cfg['type'] == 'SyncBN' and training:
            continue  # torch's has no CPU kernel for training
        for got, want in zip(new(x), original(x)):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    state = new.state_dict()
    for name, value in original.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)


def test_gradients_of_a_converted_resnet_equal_the_original():
    torch.manual_seed(0)
    original = randomize(mmdet_resnet({'type': 'BN'})).double()
    new = all_weight_on(convert_switch_norm(copy.deepcopy(original)), 'bn')
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    for model in (original, new):
        model.train()
        sum(y.square().mean() for y in model(x)).backward()
    grads = {name: p.grad for name, p in new.named_parameters()}
    for name, p in original.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, rtol=1e-7, atol=1e-9)


def check_trains(model, x):
    model.train()
    outputs = model(x)
    sum(y.square().mean() for y in outputs).backward()
    assert all(y.isfinite().all() for y in outputs)
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    model.eval()
    assert all(y.isfinite().all() for y in model(x))


def test_converted_mmdet_resnet50_trains():
    model = mmdet_resnet({'type': 'BN'}, depth=50, base_channels=64)
    state = model.state_dict()
    model = convert_switch_norm(model)
    assert sum(isinstance(m, SwitchNorm2d) for m in model.modules()) == 53
    missing = set(model.state_dict()) - set(state)
    assert set(state) <= set(model.state_dict())
    assert {name.rpartition('.')[2] for name in missing} == {'mean_weight', 'var_weight'}
    check_trains(model, torch.randn(2, 3, 64, 64))


def test_converted_mmseg_unet_trains():
    from mmseg.registry import MODELS

    model = MODELS.build({'type': 'UNet', 'base_channels': 8, '_scope_': 'mmseg'})
    model = convert_switch_norm(model)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    check_trains(model, torch.randn(2, 3, 32, 32))


def test_variants_of_sync_batch_norm_in_mmcv_and_mmengine(tmp_path):
    from mmcv.ops import SyncBatchNorm as MMCVSyncBatchNorm
    from mmengine.model import revert_sync_batchnorm

    dist.init_process_group('gloo', f'file://{tmp_path}/store', world_size=1, rank=0)
    try:
        group = dist.new_group([0])
        model = nn.Sequential(MMCVSyncBatchNorm(6), MMCVSyncBatchNorm(6, group=group))
        reverted = revert_sync_batchnorm(nn.Sequential(nn.SyncBatchNorm(6)))
        model.append(reverted[0])
        states = [
            {k: v.clone() for k, v in norm.state_dict().items()} for norm in randomize(model).eval()
        ]
        x = torch.randn(SHAPES[2])
        want = model(x)
        new = convert_switch_norm(model)
        assert [type(m) for m in new] == [SwitchNorm] * 3
        assert [m.process_group for m in new] == [None, group, None]
        for norm, state in zip(new, states):
            assert_same_state(norm, state)
        torch.testing.assert_close(all_weight_on(new, 'bn')(x), want)
    finally:
        dist.destroy_process_group()
