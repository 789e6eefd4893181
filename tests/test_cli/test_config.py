"""Finding, loading and completing a config."""

from __future__ import annotations

import inspect
import sys

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from mmengine.utils import package_utils
from torch import nn

from sn_mm.cli import config
from sn_mm.cli.config import load_config, locate_config, toolbox
from sn_mm.cli.train import check_optimizer
from sn_mm.errors import InputError
from sn_mm.switch.target import check_norms
from sn_mm_cli.parsers import make_parser

COMPLETE = """
model = dict(type='Net', blocks=[dict(depth=1), dict(depth=2)])
train_dataloader = train_cfg = optim_wrapper = dict(a=1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'small_net.py').write_text(COMPLETE)
    return tmp_path


def load(*argv: str) -> Config:
    return load_config(make_parser('train').parse_args(argv), 'train')


def test_a_path_and_a_config_of_an_installed_toolbox_are_found(folder):
    assert locate_config('configs/small_net.py').name == 'small_net.py'
    pytest.importorskip('mmdet')
    assert locate_config('mmdet::_base_/models/mask-rcnn_r50_fpn.py').is_file()


@pytest.mark.parametrize('given', ['configs/smal_net.py', 'config/small_net.py'])
def test_a_config_that_does_not_exist_is_refused_with_the_nearest_names(folder, given):
    with pytest.raises(InputError, match=rf'{given} does not exist; nearest: configs/small_net.py'):
        locate_config(given)


def test_a_toolbox_config_that_does_not_exist_is_refused_with_the_nearest_names():
    pytest.importorskip('mmdet')
    with pytest.raises(InputError, match=r'nearest: mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'):
        locate_config('mmdet::mask_rcnn/mask_rcnn_r50_fpn_1x_coc.py')


def test_a_folder_and_a_package_that_is_not_installed_are_refused(folder):
    with pytest.raises(InputError, match='configs is a folder'):
        locate_config('configs')
    with pytest.raises(InputError, match="package 'mmnone' is not installed"):
        locate_config('mmnone::a/b.py')


@pytest.mark.skipif(
    'pkg_resources' not in inspect.getsource(package_utils), reason='this mmengine does without'
)
def test_a_setuptools_that_is_too_new_for_mmengine_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    (folder / 'child.py').write_text("_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n")
    with pytest.raises(InputError, match=r"pkg_resources.*: pip install 'setuptools<82'$"):
        load('child.py')


def test_a_config_that_cannot_be_loaded_is_refused(folder):
    (folder / 'broken.py').write_text('model = dict(\n')
    with pytest.raises(InputError, match='broken.py cannot be loaded'):
        load('broken.py')
    (folder / 'orphan.py').write_text("_base_ = 'nowhere.py'\n")
    with pytest.raises(InputError, match='orphan.py cannot be loaded.*nowhere.py'):
        load('orphan.py')
    (folder / 'odd.py').write_text(
        "_base_ = 'configs/small_net.py'\ntrain_cfg = dict(a=dict(b=1))\n"
    )
    with pytest.raises(InputError, match='odd.py cannot be loaded.*a is a dict in the child'):
        load('odd.py')


def test_a_config_without_a_part_to_train_with_is_refused(folder):
    (folder / 'base.py').write_text("model = dict(type='Net')\ntrain_cfg = dict(max_epochs=1)\n")
    with pytest.raises(InputError, match='base.py has no train_dataloader, optim_wrapper'):
        load('base.py')


def test_a_config_for_a_toolbox_that_is_not_installed_is_refused(folder, monkeypatch):
    monkeypatch.setattr(config, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r'for mmflow, which is not installed'):
        load('configs/small_net.py', '--cfg-options', 'default_scope=mmflow')


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('model', 'KEY=VALUE'),
        ('a=[1,(2]', 'balanced brackets'),
        ('model.type.x=1', 'does not fit'),
        ('model.blocks.0=1', 'does not fit'),
        ('model.blocks.7.depth=1', 'does not fit'),
    ],
)
def test_a_broken_override_is_refused(folder, option, said):
    with pytest.raises(InputError, match=f'--cfg-options.*{said}'):
        load('configs/small_net.py', '--cfg-options', option)


@pytest.mark.parametrize(
    ('option', 'said'),
    [
        ('foo=1', r'SN takes .*, got foo'),
        ('init_importance=foo', r"init_importance must be None, .*, got 'foo'"),
        ('normalizers=5', r'normalizers must be one or more of .*, got \(5,\)'),
        ('eps=a', "eps must be a number, got 'a'"),
    ],
)
def test_an_argument_that_sn_refuses_is_named_before_anything_is_built(folder, option, said):
    norm = 'model.blocks.0.norm_cfg.'
    options = [f'{norm}type=sn_mm.SN', norm + option]
    with pytest.raises(InputError, match=rf'model\.blocks\.0\.norm_cfg: .*{said}'):
        load('configs/small_net.py', '--cfg-options', *options)


def test_a_layer_in_a_config_keeps_its_own_arguments(folder):
    options = ['type=SN1d', 'num_features=4', 'normalizers=[in,ln]', 'requires_grad=False']
    cfg = load('configs/small_net.py', '--cfg-options', *(f'model.norm.{o}' for o in options))
    assert cfg.model.norm.num_features == 4


def test_overrides_launcher_and_work_dir_reach_the_config(folder):
    cfg = load(
        'configs/small_net.py', '--launcher', 'slurm', '--cfg-options', 'model.blocks.1.depth=5'
    )
    assert (cfg.model.blocks[1].depth, cfg.launcher) == (5, 'slurm')
    assert cfg.work_dir == './work_dirs/small_net'
    assert load('configs/small_net.py', '--cfg-options', 'work_dir=a').work_dir == 'a'
    both = load('configs/small_net.py', '--work-dir', 'b', '--cfg-options', 'work_dir=a')
    assert both.work_dir == 'b'


@pytest.mark.parametrize('given', [None, "dict(imports='json')", "dict(imports=['json', 'sn_mm'])"])
def test_the_dumped_config_imports_sn_mm_by_itself(folder, given):
    if given:
        (folder / 'configs' / 'small_net.py').write_text(f'{COMPLETE}custom_imports = {given}')
    load('configs/small_net.py').dump('dumped.py')
    names = Config.fromfile('dumped.py').custom_imports['imports']
    assert names == (['json', 'sn_mm'] if given else ['sn_mm'])


def test_the_toolbox_is_known_by_scope_or_by_the_type_of_the_model():
    assert toolbox(Config({'default_scope': 'mmseg', 'model': {'type': 'Net'}})) == 'mmseg'
    assert toolbox(Config({'default_scope': None, 'model': {'type': nn.Conv2d}})) == 'torch'
    assert toolbox(Config({'model': {'type': 'mmdet.models.MaskRCNN'}})) == 'mmdet'
    assert toolbox(Config({'model': {'type': 'Net'}})) == 'mmengine'
    switched = {'type': 'sn_mm.SwitchedModel', 'switched': {'type': 'mmseg.EncoderDecoder'}}
    assert toolbox(Config({'model': switched})) == 'mmseg'


def test_an_optimizer_of_the_toolbox_is_registered():
    pytest.importorskip('mmpretrain')
    cfg = Config({'default_scope': 'mmpretrain', 'model': {}})
    cfg.optim_wrapper = {'optimizer': {'type': 'Lamb', 'lr': 0.1}}
    check_optimizer(cfg)
    cfg.optim_wrapper.optimizer.type = 'Lam'
    with pytest.raises(InputError, match='Lam is not a registered optimizer'):
        check_optimizer(cfg)


def test_a_norm_is_looked_for_where_its_part_of_the_model_is():
    pytest.importorskip('mmpretrain')
    model = {'backbone': {'type': 'mmpretrain.ConvNeXt', 'norm_cfg': {'type': 'LN2d'}}}
    check_norms(model, 'mmdet')
    model['neck'] = [{'type': 'FPN', 'conv_norm_cfg': {'type': 'LN2d'}}]
    with pytest.raises(InputError, match=r'^model\.neck\.0\.conv_norm_cfg\.type: LN2d is not'):
        check_norms(model, 'mmdet')


def test_variables_of_a_recipe_of_ours_are_of_its_toolbox(folder):
    pytest.importorskip('mmdet')
    (folder / 'child.py').write_text(
        "_base_ = 'sn_mm::demo/mask-rcnn_r18-sn_fpn_2xb2-3e_scenes.py'\n"
        'train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))\n'
        'model = dict(neck=dict(norm_cfg={{_base_.norm_cfg}}))\n'
    )
    cfg = load('child.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        steps = [TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline]
        MODELS.build(cfg.model)
    assert [type(step).__module__.split('.')[0] for step in steps] == ['mmcv', 'mmdet', 'mmdet']
