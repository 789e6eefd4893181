"""The switch on the toolboxes' TIMMBackbone, whose norms no config reaches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from sn_mm import SwitchNorm, SwitchNorm2d
from sn_mm.cli.config import read_config
from sn_mm.cli.norm_option import switch_norms
from sn_mm.norm_act import SwitchNormAct
from sn_mm.switch import find_unconverted
from sn_mm_cli.parsers import make_parser

pytest.importorskip('timm', exc_type=ImportError)

NORMS = {SwitchNormAct: 33, SwitchNorm2d: 1}  # of mobilenetv3_small_100
BACKBONE = dict(model_name='mobilenetv3_small_100', features_only=True, pretrained=False)


def switched(cfg: Config, folder: Path) -> nn.Module:
    """The model with ``--norm SN``, from the config as the work dir has it."""
    switch_norms(cfg, make_parser('train').parse_args(['config.py', '--norm', 'SN']))
    cfg.dump(folder / 'dumped.py')
    cfg = Config.fromfile(folder / 'dumped.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def check(model: nn.Module) -> None:
    """Every norm is SN, those of the backbone activate, and all of them learn."""
    assert find_unconverted(model) == []
    norms = [m for m in model.backbone.modules() if isinstance(m, SwitchNorm)]
    assert Counter(map(type, norms)) == NORMS
    assert all(p.grad is not None for norm in norms for p in norm.parameters())


def test_a_segmentor_on_timms_backbone(tmp_path):
    pytest.importorskip('mmseg')
    norm_cfg = dict(type='SyncBN', requires_grad=True)
    head = dict(type='FCNHead', in_channels=576, in_index=4, channels=8, num_convs=1, num_classes=3)
    head['norm_cfg'] = norm_cfg
    segmentor = dict(type='EncoderDecoder', backbone=dict(type='TIMMBackbone', **BACKBONE))
    cfg = Config(dict(default_scope='mmseg', model=dict(segmentor, decode_head=head)))
    model = switched(cfg, tmp_path)
    x = torch.randn(2, 3, 64, 64)
    sum(y.square().mean() for y in [model.decode_head(model.extract_feat(x))]).backward()
    check(model)


def test_a_ready_made_detector_on_timms_backbone(tmp_path):
    pytest.importorskip('mmpretrain')
    testing = pytest.importorskip('mmdet.testing')
    cfg = read_config('mmdet::timm_example/retinanet_timm-efficientnet-b1_fpn_1x_coco.py')
    cfg.model.backbone.update(BACKBONE)
    cfg.model.neck.in_channels = [16, 24, 48, 576]
    model = switched(cfg, tmp_path)
    data = testing.demo_mm_inputs(2, [[3, 64, 64]] * 2, num_items=[2, 3], num_classes=80)
    with DefaultScope.overwrite_default_scope('mmdet'):
        losses = model(**model.data_preprocessor(data, training=True), mode='loss')
        model.parse_losses(losses)[0].backward()
    check(model)
