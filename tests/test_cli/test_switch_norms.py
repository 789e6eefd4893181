"""``--norm`` and ``--norm-extent``, from the command line to the built model."""

from __future__ import annotations

import pytest
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from sn_mm import SwitchNorm
from sn_mm.cli.norm_option import switch_norms
from sn_mm.compare import plan
from sn_mm.errors import InputError
from sn_mm_cli.parsers import make_parser

mmcv_cnn = pytest.importorskip('mmcv.cnn')


class Net(nn.Module):
    """Norms of the config in a backbone and a head, and where asked for some of its own."""

    def __init__(
        self, backbone: dict | None, head: dict | None = None, own: int = 0, inner: int = 0
    ) -> None:
        super().__init__()
        for name, part in (('backbone', backbone), ('head', head)):
            if part is not None:
                self.add_module(name, mmcv_cnn.build_norm_layer(part['norm_cfg'], 4)[1])
        self.stem = nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(own)))
        self.backbone_stem = nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(inner)))


NET = dict(type='Net', backbone=dict(norm_cfg=dict(type='BN')))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(MODELS.module_dict, 'Net', Net)


def config(**model: object) -> Config:
    return Config(dict(model={**NET, **model}))


def switch(cfg: Config, *argv: str) -> Config:
    switch_norms(cfg, make_parser('train').parse_args(['config.py', *argv]))
    return cfg


def test_without_the_option_nothing_changes():
    cfg = config()
    assert switch(cfg).to_dict() == config().to_dict()


def test_arguments_reach_the_norm_and_the_config_builds_again(capsys):
    argv = ('--norm', 'SN', 'normalizers=[in,ln]', 'sync=False', 'eps=1e-3')
    cfg = switch(config(), *argv)
    wanted = dict(type='SN', normalizers=['in', 'ln'], sync=False, eps=1e-3)
    assert cfg.model.backbone.norm_cfg == wanted
    assert cfg.model.type == 'Net'  # nothing is hard-coded: no conversion needed
    shown = capsys.readouterr().out
    assert 'model.backbone.norm_cfg' in shown and "normalizers=['in', 'ln']" in shown


def test_what_is_hard_coded_is_reported_and_converted_whenever_the_config_is_built(
    capsys, tmp_path
):
    cfg = switch(config(own=2), '--norm', 'SN', 'momentum=0.2')
    shown = capsys.readouterr().out
    assert (
        'BatchNorm2d' in shown
        and 'hard-coded: converted' in shown
        and "normalizers=['in', 'ln', 'bn']" in shown
    )
    cfg.dump(tmp_path / 'dumped.py')
    model = MODELS.build(Config.fromfile(tmp_path / 'dumped.py').model)
    assert all(isinstance(layer, SwitchNorm) for layer in (model.backbone, *model.stem))
    assert [layer.momentum for layer in (model.backbone, *model.stem)] == [0.2] * 3


def test_a_switch_that_could_convert_no_norm_is_refused(monkeypatch):
    def patched(**parts: object) -> Net:
        net = Net(**parts)
        for norm in net.stem:
            norm.forward = nn.functional.relu
        return net

    monkeypatch.setitem(MODELS.module_dict, 'Net', patched)
    with pytest.raises(
        InputError, match=r'^nothing to switch: .* more than a norm: stem.0, stem.1$'
    ):
        switch(config(backbone=None, own=2), '--norm', 'SN')


def test_the_extent_backbone_leaves_what_is_hard_coded_elsewhere():
    cfg = switch(config(own=2), '--norm', 'SN', '--norm-extent', 'backbone')
    model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, SwitchNorm)
    assert all(type(layer) is nn.BatchNorm2d for layer in model.stem)


def test_the_option_under_its_old_name_says_the_new_one(capsys):
    model = MODELS.build(switch(config(own=2), '--norm', 'SN', '--norm-scope', 'backbone').model)
    assert type(model.stem[0]) is nn.BatchNorm2d
    assert '--norm-scope is called --norm-extent since version 1.1' in capsys.readouterr().err


def test_a_second_switch_of_a_dumped_config_adds_to_the_first(tmp_path):
    cfg = config(own=1, inner=1)
    for argv in (['eps=0.5', '--norm-extent', 'backbone'], []):
        switch(cfg, '--norm', 'SN', *argv).dump(tmp_path / 'dumped.py')
        cfg = Config.fromfile(tmp_path / 'dumped.py')
    model = MODELS.build(cfg.model)
    assert type(model) is Net
    layers = (model.backbone, *model.backbone_stem, *model.stem)
    assert all(isinstance(layer, SwitchNorm) for layer in layers)
    assert [layer.eps for layer in layers] == [0.5, 0.5, 1e-5]
    for extent in ('existing', 'backbone'):
        with pytest.raises(InputError, match='nothing to switch'):
            switch(cfg, '--norm', 'SN', '--norm-extent', extent)


def test_a_norm_that_needs_a_process_group_may_stay_before_there_is_one():
    ops = pytest.importorskip('mmcv.ops')
    norms = [dict(type='MMSyncBN', stats_mode='N'), dict(type=ops.SyncBatchNorm)]
    for norm_cfg in norms:
        cfg = config(head=dict(norm_cfg=norm_cfg), inner=1)
        switch(cfg, '--norm', 'SN', '--norm-extent', 'backbone')
        assert cfg.model.head.norm_cfg == norm_cfg
        dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
        try:
            model = MODELS.build(cfg.model)
        finally:
            dist.destroy_process_group()
        assert type(model.head) is ops.SyncBatchNorm
        assert isinstance(model.backbone_stem[0], SwitchNorm)


def test_a_model_whose_norms_are_all_hard_coded_is_converted():
    cfg = switch(config(backbone=None, own=2), '--norm', 'SN')
    assert all(isinstance(layer, SwitchNorm) for layer in MODELS.build(cfg.model).stem)
    with pytest.raises(InputError, match='nothing to switch'):
        switch(config(backbone=None), '--norm', 'SN')


def test_a_model_whose_norms_are_all_hard_coded_can_be_compared():
    cfg = config(backbone=None, own=2)
    switched = {norm: plan.switch(cfg, norm, 'existing')[0] for norm in ('BN', 'SN')}
    layers = {norm: MODELS.build(switched[norm].model).stem for norm in switched}
    assert all(type(layer) is nn.BatchNorm2d for layer in layers['BN'])
    assert all(isinstance(layer, SwitchNorm) for layer in layers['SN'])
    with pytest.raises(InputError, match='nothing to switch'):
        plan.switch(cfg, 'GN', 'existing')


def test_the_table_names_what_stays_in_the_built_model_once(monkeypatch, capsys):
    frozen = pytest.importorskip('torchvision').ops.FrozenBatchNorm2d
    monkeypatch.setitem(MODELS.module_dict, 'FrozenBN', frozen)

    class Mixed(Net):
        def __init__(self, **parts: object) -> None:
            super().__init__(**parts)
            self.body = nn.Sequential(frozen(4), frozen(4), nn.LayerNorm(4))

    monkeypatch.setitem(MODELS.module_dict, 'Net', Mixed)
    switch(config(head=dict(norm_cfg=dict(type='FrozenBN'))), '--norm', 'SN')
    rows = [line for line in capsys.readouterr().out.splitlines() if 'as it was' in line]
    kinds = {row.split('│')[1].strip(): row.split('│')[2].strip() for row in rows}
    assert kinds == {
        'head': 'FrozenBatchNorm2d',
        'body.0': 'FrozenBatchNorm2d',
        'body.1': 'FrozenBatchNorm2d',
        'body.2': 'LayerNorm',
    }
    assert sum('a frozen BatchNorm' in row for row in rows) == 3


def test_other_ranks_print_nothing(monkeypatch, capsys):
    monkeypatch.setenv('LOCAL_RANK', '1')
    switch(config(), '--norm', 'SN')
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('argv', 'said'),
    [
        (['--norm-extent', 'all'], '--norm-extent needs --norm SN'),
        (['--norm', 'LN'], "one of SN, SN1d, .*, SSN, .*, BN, SyncBN, GN, IN, got 'LN'"),
        (['--norm', 'SN', 'num_groups=4'], 'got num_groups'),
        (['--norm', 'BN', 'sync=False'], 'BN takes .*, got sync'),
        (['--norm', 'GN', 'num_groups=0'], 'num_groups must be .*, got 0'),
        (['--norm', 'SN', 'normalizers=[foo]'], "got .'foo',"),
        (['--norm', 'SN', 'type=BN'], 'without type='),
        (['--norm', 'SN', 'config.py'], "takes TYPE .KEY=VALUE ....*, got 'SN config.py'"),
        (['--norm', 'SN', 'normalizers=[(in]'], '--norm expects KEY=VALUE'),
    ],
)
def test_wrong_options_are_refused(argv, said):
    with pytest.raises(InputError, match=said):
        switch(config(), *argv)


def test_a_dotted_key_makes_shares():
    cfg = switch(config(), '--norm', 'SN', 'init_importance.bn=0.9')
    assert cfg.model.backbone.norm_cfg == dict(type='SN', init_importance=dict(bn=0.9))


@pytest.mark.parametrize(
    ('norm', 'layer'),
    [
        (['BN'], nn.BatchNorm2d),
        (['SyncBN'], nn.SyncBatchNorm),
        (['GN', 'num_groups=2'], nn.GroupNorm),
        (['IN'], nn.InstanceNorm2d),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else '',
)
@pytest.mark.parametrize('old', ['BN', 'SN', 'GN'])
def test_any_norm_takes_the_place_of_any_other(norm, layer, old):
    norm_cfg = dict(type=old, eps=0.5, **({'num_groups': 4} if old == 'GN' else {}))
    cfg = config(backbone=dict(norm_cfg=norm_cfg))
    cfg.custom_hooks = [dict(type='SwitchWeightsHook'), dict(type='NumClassCheckHook')]
    switch(cfg, '--norm', *norm)
    built = MODELS.build(cfg.model).backbone
    assert isinstance(built, layer) and built.eps == 0.5 and built.weight is not None
    assert getattr(built, 'num_groups', 2) == 2
    assert cfg.custom_hooks == [dict(type='NumClassCheckHook')]


def test_another_norm_than_sn_leaves_what_is_hard_coded_and_says_so(capsys):
    cfg = switch(config(own=1), '--norm', 'GN', 'num_groups=2')
    model = MODELS.build(cfg.model)
    assert type(model.backbone) is nn.GroupNorm and type(model.stem[0]) is nn.BatchNorm2d
    shown = capsys.readouterr().out
    assert 'stem.0' in shown and 'hard-coded: only a switch to SN converts it' in shown
    switch(config(own=1), '--norm', 'BN')
    assert 'stem.0' not in capsys.readouterr().out
