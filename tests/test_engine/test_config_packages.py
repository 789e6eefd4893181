"""``PACKAGE::PATH`` in a config's ``_base_``: sn_mm's own, and toolboxes under another name."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import (
    HOOKS,
    LOOPS,
    MODELS,
    OPTIM_WRAPPERS,
    PARAM_SCHEDULERS,
    DefaultScope,
)
from mmengine.runner import Runner

from sn_mm import SwitchNorm
from sn_mm.benchmark.configs import dicts
from sn_mm.cli.config import locate_config
from sn_mm.engine.config_packages import register_config_packages

ROOT = Path(__file__).parents[2]
RECIPE = 'mask_rcnn/mask-rcnn_r50-sn_fpn_8xb2-2x_coco.py'


def test_a_recipe_is_a_base_from_any_folder(tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'child.py').write_text(
        f"_base_ = 'sn_mm::{RECIPE}'\nmodel = dict(backbone=dict(init_cfg=None))\n"
    )
    cfg = Config.fromfile(tmp_path / 'child.py')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert sum(isinstance(module, SwitchNorm) for module in model.modules()) > 60


@pytest.mark.slow
def test_all_that_a_recipe_adds_to_its_toolbox_is_known_where_it_is_a_base(tmp_path):
    """MMEngine marks it with the scope of the base, sn_mm, in which it then looks for the type."""
    for package in ('mmdet', 'mmseg', 'mmpretrain', 'mmaction'):
        pytest.importorskip(package)
    registries = {
        'model': MODELS,
        'optim_wrapper': OPTIM_WRAPPERS,
        'param_scheduler': PARAM_SCHEDULERS,
        'train_cfg': LOOPS,
        'custom_hooks': HOOKS,
    }
    for file in sorted((ROOT / 'configs').glob('*/*.py')):
        name = f'{file.parent.name}/{file.name}'
        (tmp_path / 'child.py').write_text(f"_base_ = 'sn_mm::{name}'\n")
        cfg = Config.fromfile(tmp_path / 'child.py')
        for key in inspect.signature(Runner.__init__).parameters.keys() & cfg.keys():
            for node in dicts(cfg[key]):
                if node.get('_scope_') == 'sn_mm':
                    with registries[key].switch_scope_and_registry('sn_mm') as registry:
                        assert registry.scope == 'sn_mm', f'{name}: {key}'  # else it warns
                        assert registry.get(node['type']) is not None, f'{name}: {key}'


def test_a_base_may_import_the_package_in_a_script_that_does_not(tmp_path):
    pytest.importorskip('mmdet')
    (tmp_path / 'child.py').write_text(f"_base_ = __import__('sn_mm') and 'sn_mm::{RECIPE}'\n")
    code = "from mmengine.config import Config; print(Config.fromfile('child.py').model.type)"
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == 'MaskRCNN\n', done.stderr


def test_a_recipe_is_found_by_its_name_alone():
    assert locate_config(f'sn_mm::{RECIPE}').samefile(ROOT / 'configs' / RECIPE)


def test_the_index_names_every_folder_with_recipes():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    assert index == sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('configs/*/metafile.yml'))


@pytest.mark.parametrize(
    ('package', 'path'),
    (
        ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
        ('mmseg', 'fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'),
    ),
)
def test_a_toolbox_of_another_distribution_is_found(package, path, tmp_path, monkeypatch):
    """As the maintained forks are: the package's name is the old one, the distribution's is not."""
    pytest.importorskip(package)
    name = 'a-distribution-that-is-not-here'
    with pytest.raises(PackageNotFoundError):
        distribution(name)
    (tmp_path / 'child.py').write_text(f"_base_ = '{package}::{path}'\n")
    monkeypatch.setitem(MODULE2PACKAGE, package, name)
    with pytest.raises(ModuleNotFoundError, match=f'{re.escape(name)} is not installed'):
        Config.fromfile(tmp_path / 'child.py')
    register_config_packages()
    assert Config.fromfile(tmp_path / 'child.py').model.type
