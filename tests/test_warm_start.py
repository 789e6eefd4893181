"""init_importance: what a layer starts from, and that 'bn' keeps a BatchNorm network."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from sn_mm import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, convert_switch_norm
from sn_mm.errors import InputError

IMPORTANCE = {
    'bn': (5e-8, 5e-8, 1 - 1e-7),
    'ln': (5e-8, 1 - 1e-7, 5e-8),
    ('bn', 0.9): (0.05, 0.05, 0.9),
    ('in', 0.2, 'bn', 0.7): (0.2, 0.1, 0.7),
    ('in', 0.2, 'ln', 0.3, 'bn', 0.5): (0.2, 0.3, 0.5),
}
WARM = {'type': 'SN', 'init_importance': 'bn'}


def resnet(norm_cfg: dict, depth: int = 18, width: int = 16, **kwargs) -> nn.Module:
    widths = {'base_channels': width, 'stem_channels': width}
    cfg = {'type': 'mmdet.ResNet', 'depth': depth, 'norm_cfg': norm_cfg, 'norm_eval': False}
    return MODELS.build({**cfg, **widths, **kwargs, '_scope_': 'mmdet'})


@torch.no_grad()
def batch_norm_resnet(**kwargs) -> nn.Module:
    """As after training: outputs of order 1, statistics collected from images of varied colour."""
    model = resnet({'type': 'BN'}, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out')
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
    for module in model.modules():
        if hasattr(module, 'downsample'):
            (module.norm3 if hasattr(module, 'conv3') else module.norm2).weight.mul_(0.2)
    model.train()
    for _ in range(4):
        model(images())
    model.eval()
    return model


def images() -> Tensor:
    return torch.randn(4, 3, 64, 96) + torch.randn(4, 3, 1, 1)


@torch.no_grad()
def largest_change(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Largest difference of the outputs, in standard deviations of the stage's output."""
    model.eval(), other.eval()
    return max(((a - b).abs().max() / b.std()).item() for a, b in zip(model(x), other(x)))


# --- the importance


@pytest.mark.parametrize('layer', [SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d])
@pytest.mark.parametrize('given', IMPORTANCE, ids=str)
def test_the_softmax_is_what_was_asked_for(given, layer):
    mapping = given if isinstance(given, str) else dict(zip(given[::2], given[1::2]))
    norm = layer(4, init_importance=mapping, dtype=torch.float64)
    for logits in (norm.mean_weight, norm.var_weight):
        wanted = torch.tensor(IMPORTANCE[given], dtype=torch.float64)
        torch.testing.assert_close(logits.detach().softmax(0), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize('given', [None, {}, 'equal'])
def test_equal_importance_is_ones(given):
    norm = SwitchNorm2d(4, init_importance=given)
    assert norm.mean_weight.tolist() == norm.var_weight.tolist() == [1, 1, 1]


def test_importance_follows_the_normalizers():
    norm = SwitchNorm2d(4, normalizers=('bn', 'ln'), init_importance={'bn': 0.75})
    assert norm.importance()['mean'] == pytest.approx({'ln': 0.25, 'bn': 0.75})
    alone = SwitchNorm2d(4, normalizers='ln', init_importance='ln')
    assert alone.mean_weight.tolist() == [1]


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('gn', r"one of the normalizers \('in', 'ln', 'bn'\).* got 'gn'"),
        ('', "got ''"),
        (['bn'], r"a mapping .* got \['bn'\]"),
        (0.9, 'got 0.9'),
        ({'gn': 0.5}, r"got {'gn': 0.5}"),
        ({'bn': 1}, r'sum to less than 1, .* got {.bn.: 1}'),
        ({'bn': 0}, 'positive'),
        ({'bn': -0.5}, 'positive'),
        ({'bn': float('nan')}, 'nan'),
        ({'bn': '0.9'}, 'positive'),
        ({'in': 0.2, 'ln': 0.3, 'bn': 0.3}, 'to 1 where all'),
    ],
)
def test_what_is_no_mix_is_refused(given, message):
    with pytest.raises(InputError, match=f'init_importance .*{message}'):
        SwitchNorm2d(4, init_importance=given)


def test_a_scope_that_the_layer_has_not_is_refused():
    with pytest.raises(InputError, match=r"normalizers \('in', 'ln'\).* got 'bn'"):
        SwitchNorm2d(4, normalizers=('in', 'ln'), init_importance='bn')


# --- where it is given, and later


def test_copies_reset_and_repr_keep_it():
    norm = SwitchNorm2d(4, init_importance=ConfigDict(bn=0.9))
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        nn.init.normal_(twin.mean_weight)
        twin.reset_parameters()
        torch.testing.assert_close(twin.state_dict(), norm.state_dict(), rtol=0, atol=0)
        assert type(twin.init_importance) is dict
    assert "init_importance={'bn': 0.9}" in repr(norm)
    assert 'init_importance' not in repr(SwitchNorm2d(4))


def test_reset_parameters_initializes_a_layer_made_without_storage():
    norm = SwitchNorm2d(4, init_importance='bn', device='meta').to_empty(device='cpu')
    norm.reset_parameters()
    wanted = SwitchNorm2d(4, init_importance='bn').state_dict()
    torch.testing.assert_close(norm.state_dict(), wanted, rtol=0, atol=0)


def test_a_checkpoint_overrides_it():
    trained = SwitchNorm2d(4)
    nn.init.normal_(trained.mean_weight)
    norm = SwitchNorm2d(4, init_importance='bn')
    norm.load_state_dict(trained.state_dict())
    assert norm.importance() == trained.importance()


def test_the_toolboxes_initialization_leaves_it_alone():
    model = resnet(WARM)
    model.init_weights()
    norms = [m for m in model.modules() if isinstance(m, SwitchNorm2d)]
    assert len(norms) == 20
    assert all(m.importance()['var']['bn'] == pytest.approx(1 - 1e-7) for m in norms)


# --- a BatchNorm network


@pytest.mark.parametrize('depth', [18, pytest.param(50, marks=pytest.mark.slow)])
def test_bn_keeps_the_function_of_a_batch_norm_resnet(depth):
    """From a checkpoint and by conversion. Equal importance changes it by standard deviations."""
    original, x = batch_norm_resnet(depth=depth), images()
    loaded = resnet(WARM, depth)
    missing = loaded.load_state_dict(original.state_dict(), strict=False).missing_keys
    assert {key.rpartition('.')[2] for key in missing} == {'mean_weight', 'var_weight'}
    converted = convert_switch_norm(copy.deepcopy(original), init_importance='bn')
    for model in (loaded, converted):
        assert largest_change(model, original, x) < 1e-4
    equal = convert_switch_norm(copy.deepcopy(original))
    assert largest_change(equal, original, x) > 1


def test_bn_keeps_the_gradients_in_training():
    original = batch_norm_resnet().double()
    warm = convert_switch_norm(copy.deepcopy(original), init_importance='bn')
    x = images().double()
    for model in (original, warm):
        model.train()
        sum(y.square().mean() for y in model(x)).backward()
    gradients = {name: p.grad for name, p in warm.named_parameters()}
    for name, p in original.named_parameters():
        assert (gradients[name] - p.grad).norm() < 1e-5 * p.grad.norm(), name


EQUAL = 'equal'


def test_frozen_stages_with_a_batch_norm_checkpoint_are_the_batch_norm_network(tmp_path):
    """Nothing adapts in them: with equal importance frozen stages stay another network for good."""
    original, x = batch_norm_resnet(), images()
    torch.save(original.state_dict(), tmp_path / 'bn.pth')
    changes = []
    for init_importance in ('bn', None, EQUAL):
        model = resnet(
            {'type': 'SN', 'init_importance': init_importance},
            frozen_stages=1,
            out_indices=(0, 1, 2, 3),
            init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'bn.pth')},
        )
        model.init_weights()
        changes.append(largest_change(model, original, x))
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        sum(y.square().mean() for y in model(x)).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            frozen, wanted = model(x)[0], original(x)[0]
        same = bool((frozen - wanted).abs().max() < 1e-4 * wanted.std())
        assert same == (init_importance != EQUAL)
    assert changes[0] < 1e-4 < changes[1] < changes[2]


# --- layers that take over a BatchNorm


def trained_batch_norm(channels: int = 4) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm(torch.randn(2, channels, 3, 3))
    return norm


def importance_of(layer: SwitchNorm) -> list[float]:
    return [round(share, 6) for share in layer.importance()['var'].values()]


def test_a_layer_that_loads_a_batch_norm_starts_close_to_it():
    norm = SwitchNorm2d(4)
    norm.load_state_dict(trained_batch_norm().state_dict(), strict=False)
    assert importance_of(norm) == [0.05, 0.05, 0.9]


def test_a_frozen_layer_that_loads_a_batch_norm_is_it():
    norm, original, x = SwitchNorm2d(4), trained_batch_norm().eval(), torch.randn(2, 4, 3, 3)
    norm.requires_grad_(False).eval().load_state_dict(original.state_dict(), strict=False)
    torch.testing.assert_close(norm(x), original(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('given', [EQUAL, 'ln', {'bn': 0.5}], ids=str)
def test_a_mix_that_was_asked_for_is_kept(given):
    norm = SwitchNorm2d(4, init_importance=given)
    before = importance_of(norm)
    norm.load_state_dict(trained_batch_norm().state_dict(), strict=False)
    assert importance_of(norm) == before
    assert importance_of(convert_switch_norm(trained_batch_norm(), init_importance=given)) == before


def test_only_weights_of_a_batch_norm_change_the_start():
    learned = SwitchNorm2d(4)
    learned.var_weight.data[0] = 3
    norm = SwitchNorm2d(4)
    norm.load_state_dict(learned.state_dict())
    assert importance_of(norm) == importance_of(learned)
    norm = SwitchNorm2d(4)
    norm.load_state_dict(nn.GroupNorm(2, 4).state_dict(), strict=False)
    assert importance_of(norm) == [0.333333] * 3
    norm = SwitchNorm2d(4, normalizers=('in', 'ln'))
    norm.load_state_dict(trained_batch_norm().state_dict(), strict=False)
    assert importance_of(norm) == [0.5, 0.5]


def test_a_part_of_sns_own_state_keeps_the_mix():
    learned = SwitchNorm2d(4)
    learned.var_weight.data[0] = 3
    before = importance_of(learned)
    statistics = {k: v for k, v in learned.state_dict().items() if 'running' in k}
    learned.load_state_dict(statistics, strict=False)
    assert importance_of(learned) == before


@pytest.mark.parametrize('full', [True, False])
def test_torchs_distributed_checkpoint_loads_as_load_state_dict_does(full):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=full, strict=False)
    model = nn.Sequential(SwitchNorm2d(4))
    set_model_state_dict(model, nn.Sequential(trained_batch_norm()).state_dict(), options=options)
    assert importance_of(model[0]) == [0.05, 0.05, 0.9]
    learned = nn.Sequential(SwitchNorm2d(4))
    learned[0].var_weight.data[0] = 3
    set_model_state_dict(model, learned.state_dict(), options=options)
    assert importance_of(model[0]) == importance_of(learned[0])


def test_a_sharded_layer_takes_over_a_batch_norm(tmp_path):
    fsdp = pytest.importorskip('torch.distributed.fsdp')
    if not hasattr(fsdp, 'fully_shard'):
        pytest.skip('no FSDP2 in this torch')
    file = f'file://{tmp_path}/store'
    torch.distributed.init_process_group('gloo', init_method=file, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh('cpu', (1,))
        layer = SwitchNorm2d(4)
        fsdp.fully_shard(layer, mesh=mesh)
        layer.take_over_batch_norm()
        assert importance_of_logits(layer.var_weight.full_tensor()) == [0.05, 0.05, 0.9]
        layer.reset_parameters()
        assert importance_of_logits(layer.mean_weight.full_tensor()) == [0.333333] * 3
    finally:
        torch.distributed.destroy_process_group()


def importance_of_logits(logits: Tensor) -> list[float]:
    return [round(share, 6) for share in logits.detach().softmax(0).tolist()]


def test_a_conversion_takes_over_a_trained_batch_norm_and_starts_a_fresh_one_equally():
    assert importance_of(convert_switch_norm(trained_batch_norm())) == [0.05, 0.05, 0.9]
    assert importance_of(convert_switch_norm(nn.BatchNorm2d(4))) == [0.333333] * 3
    old_file = trained_batch_norm()  # without the counter
    old_file.num_batches_tracked.zero_()
    assert importance_of(convert_switch_norm(old_file)) == [0.05, 0.05, 0.9]
    original, x = trained_batch_norm().eval(), torch.randn(2, 4, 3, 3)
    frozen = convert_switch_norm(copy.deepcopy(original).requires_grad_(False))
    torch.testing.assert_close(frozen(x), original(x), rtol=1e-5, atol=1e-6)
    assert convert_switch_norm(nn.BatchNorm2d(4, device='meta')).mean_weight.is_meta


def test_maps_of_one_position_stay_on_the_scope():
    x = torch.randn(3, 4, 1, 1)
    bn, sn = nn.BatchNorm2d(4), SwitchNorm2d(4, init_importance='bn')
    for _ in range(2):
        torch.testing.assert_close(sn(x), bn(x), rtol=1e-4, atol=1e-5)
        sn.eval(), bn.eval()
