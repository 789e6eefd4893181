"""The recipes of configs/: each has the norms and the solver that its name says."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import cv2
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sn_mm import SwitchNorm
from sn_mm.engine.importance_constructor import LR_MULT
from sn_mm.engine.safe_load import safe_load

for package in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'

DETECTION = ('mask_rcnn', 'faster_rcnn')
SEGMENTATION = ('deeplabv3', 'deeplabv3plus', 'fcn')
OTHER = {'resnet': 'mmpretrain', 'slowonly': 'mmaction', 'i3d': 'mmaction'}
RECIPES = [
    f for folder in DETECTION + SEGMENTATION for f in sorted((CONFIGS / folder).glob('*.py'))
]
NORMS = {'gn': nn.GroupNorm, 'syncbn': _BatchNorm, 'sn': SwitchNorm}


@cache
def load(file: Path) -> Config:
    """Loads a recipe, for all tests: take a copy of what changes."""
    return Config.fromfile(file)


@cache
def build(file: Path) -> nn.Module:
    """Builds a recipe's model without its weights."""
    cfg = copy.deepcopy(load(file))
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        return MODELS.build(cfg.model)


@pytest.mark.parametrize('file', RECIPES, ids=lambda f: f.stem)
def test_every_norm_and_its_weight_decay_are_what_the_name_says(file: Path) -> None:
    model = build(file)
    wanted = NORMS[re.search(r'[-_](sn|gn|syncbn)[-_]', file.stem)[1]]
    norms = {n: m for n, m in model.named_modules() if isinstance(m, tuple(NORMS.values()))}
    assert len(norms) > 50
    assert {type(norm) for norm in norms.values() if not isinstance(norm, wanted)} == set()
    if wanted is SwitchNorm:
        scopes = ('in', 'ln') if '-in-ln_' in file.stem else ('in', 'ln', 'bn')
        assert {norm.normalizers for norm in norms.values()} == {scopes}

    wrapper = copy.deepcopy(load(file).optim_wrapper)
    groups = build_optim_wrapper(model, copy.deepcopy(wrapper)).optimizer.param_groups
    decay = {id(p): group['weight_decay'] for group in groups for p in group['params']}
    learned = [p for norm in norms.values() for p in norm.parameters()]
    assert {decay[id(p)] for p in learned} == {0}
    assert {decay[id(p)] for p in model.parameters()} == {0, wrapper.optimizer.weight_decay}
    assert any(LR_MULT in group for group in groups) == (wanted is SwitchNorm)
    if wanted is SwitchNorm:
        assert [hook.type for hook in load(file).custom_hooks] == ['ImportanceHook']


@pytest.mark.parametrize('file', [f for f in RECIPES if f.parent.name in DETECTION])
def test_detectors_have_norms_where_the_paper_has_them(file: Path) -> None:
    model = build(file)
    norms = [n for n, m in model.named_modules() if isinstance(m, tuple(NORMS.values()))]
    parts = {'.'.join(name.split('.')[: 2 if name.startswith('roi_head') else 1]) for name in norms}
    if '_c4_' in file.stem:
        assert parts == {'backbone', 'roi_head.shared_head'}
    else:
        heads = {'roi_head.bbox_head', 'roi_head.mask_head'}
        assert parts == {'backbone', 'neck', 'roi_head.bbox_head'} | (
            heads if file.stem.startswith('mask') else set()
        )
        assert type(model.roi_head.bbox_head).__name__ == 'Shared4Conv1FCBBoxHead'


@pytest.mark.parametrize('file', [f for f in RECIPES if f.parent.name in (*DETECTION, 'fcn')])
def test_learning_rate_belongs_to_the_batch_in_the_name(file: Path) -> None:
    cfg = load(file)
    gpus, images = map(int, re.search(r'_(\d+)xb(\d+)-', file.stem).groups())
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == gpus * images
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.02 * gpus * images / 16)
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4


@pytest.mark.parametrize('file', [f for f in RECIPES if '-scratch_' in f.stem])
def test_from_scratch_nothing_is_frozen_and_no_weights_are_loaded(file: Path) -> None:
    backbone = load(file).model.backbone
    assert (backbone.frozen_stages, backbone.init_cfg) == (-1, None)


@pytest.mark.parametrize('folder', [*DETECTION, *SEGMENTATION, *OTHER])
def test_readme_and_metafile_list_the_recipes_of_a_folder(folder: str) -> None:
    files = sorted((CONFIGS / folder).glob('*.py'))
    meta = yaml.safe_load((CONFIGS / folder / 'metafile.yml').read_text())
    assert [ROOT / model['Config'] for model in meta['Models']] == files
    readme = (CONFIGS / folder / 'README.md').read_text()
    for file in files:
        assert file.stem in readme or f'`{file.stem.split("-", 1)[1].split("_in1k")[0]}`' in readme


@pytest.mark.parametrize(
    'file', [f for folder in OTHER for f in sorted((CONFIGS / folder).glob('*.py'))]
)
def test_classifiers_and_video_models_train_one_step(file: Path) -> None:
    package = OTHER[file.parent.name]
    pytest.importorskip(package)
    cfg = Config.fromfile(file)
    init_default_scope(cfg.default_scope)
    model = MODELS.build({**cfg.model, 'data_preprocessor': None})
    model.backbone.pretrained = None
    model.init_weights()
    norms = [m for m in model.modules() if isinstance(m, (SwitchNorm, _BatchNorm))]
    assert len(norms) == 53 and all(isinstance(norm, SwitchNorm) for norm in norms)
    shape = (2, 3, 64, 64) if package == 'mmpretrain' else (2, 1, 3, 8, 64, 64)
    structures = import_module(f'{package}.structures')
    sample = 'DataSample' if package == 'mmpretrain' else 'ActionDataSample'
    samples = [getattr(structures, sample)().set_gt_label(label) for label in (0, 1)]
    losses = model(torch.randn(shape), samples, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for norm in norms for p in norm.parameters())


# Images in folders by class, and frames of videos in folders with a list, in place of the sets.
SMALL_DATA = {
    'resnet/resnet50-sn_8xb32_in1k.py': """
dataset = dict(
    _delete_=True,
    type='CustomDataset',
    data_prefix='images',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
""",
    'slowonly/slowonly_r50-sn_8xb16-4x16x1-256e_kinetics400-rgb.py': """
dataset = dict(
    _delete_=True,
    type='RawframeDataset',
    ann_file='videos.txt',
    data_prefix=dict(img='images'),
    filename_tmpl='{:02}.png',
    pipeline=[
        dict(type='SampleFrames', clip_len=4, frame_interval=1, num_clips=1),
        dict(type='RawFrameDecode'),
        dict(type='FormatShape', input_format='NCTHW'),
        dict(type='PackActionInputs')
    ])
model = dict(backbone=dict(pretrained=None))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize('recipe', SMALL_DATA, ids=lambda recipe: recipe.split('/')[0])
def test_a_classifier_and_a_video_model_train_with_the_real_script(
    recipe: str, tmp_path: Path
) -> None:
    pytest.importorskip(OTHER[recipe.split('/')[0]])
    for folder in ('a', 'b', 'c', 'd'):
        (tmp_path / 'images' / folder).mkdir(parents=True)
        for number in range(1, 5):
            file = tmp_path / 'images' / folder / f'{number:02}.png'
            image = torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy()
            assert cv2.imwrite(str(file), image)
    (tmp_path / 'videos.txt').write_text('a 4 0\nb 4 1\nc 4 2\nd 4 3\n')
    (tmp_path / 'small.py').write_text(
        f"""_base_ = '{CONFIGS / recipe}'
{SMALL_DATA[recipe]}
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2)
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
param_scheduler = None
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2))
"""
    )
    command = [sys.executable, ROOT / 'tools/train.py', 'small.py', '--work-dir', 'out']
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state = safe_load(tmp_path / 'out/iter_2.pth')['state_dict']
    logits = [v for k, v in state.items() if k.endswith(('mean_weight', 'var_weight'))]
    assert len(logits) == 2 * 53 and all(v.isfinite().all() for v in logits)
    assert all((v != 1).any() for v in logits[:2])  # the stem's; zero_init_residual holds others
