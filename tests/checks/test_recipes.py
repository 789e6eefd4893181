"""The recipes of configs/ train, on small scenes in the layouts of their data sets.

    bash tools/run_tests.sh tests/checks/test_recipes.py
    bash tools/run_tests.sh tests/checks/test_recipes.py --every-config --record

A recipe keeps its model and solver. Its images become small, no weights are loaded, and it ends
after a few iterations. tools/train.py trains each, and each toolbox's own script one.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.utils import get_installed_path
from small_runs import LIMIT, ROOT, run

from sn_mm.output.markdown import markdown_table
from sn_mm.switch.nodes import dicts
from sn_mm_cli.main import main

from .record import machine, write_record

for package in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)

ITERATIONS = 3
SIDE = 64  # of the images, in pixels
LAYOUTS = {'coco': 'coco/', 'cityscapes': 'cityscapes/', 'ade20k': 'ade/ADEChallengeData2016/'}
METHODS = ('mask_rcnn', 'faster_rcnn', 'deeplabv3', 'deeplabv3plus', 'fcn')
# tests/test_packaging.py trains a detector's.
FEW = [('fcn/fcn_r50-d8-sn_8xb2-25k_ade20k-512x512', 'tools/train.py')]
OWN = [
    ('mask_rcnn/mask-rcnn_r50-sn_fpn_8xb2-2x_coco', "mmdet's train.py"),
    (
        'deeplabv3plus/deeplabv3plus_r50-d8-sn_4xb2-40k_cityscapes-512x1024',
        "mmseg's train.py",
    ),
]
SCRIPTS = {
    'tools/train.py': ROOT / 'tools/train.py',
    "mmdet's train.py": Path(get_installed_path('mmdet')) / '.mim/tools/train.py',
    "mmseg's train.py": Path(get_installed_path('mmseg')) / '.mim/tools/train.py',
}
EVERY = [
    (f'{method}/{file.stem}', 'tools/train.py')
    for method in METHODS
    for file in sorted((ROOT / 'configs' / method).glob('*.py'))
] + OWN


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if 'recipe' in metafunc.fixturenames:
        runs = EVERY if metafunc.config.getoption('every_config') else FEW
        ids = [f'{recipe}, {script}' for recipe, script in runs]
        metafunc.parametrize(('recipe', 'script'), runs, ids=ids)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scenes')
    options = f'--categories coco --size {SIDE} --digits 2 3 --train 8 --val 2'
    main(['make-scenes', str(folder), *options.split()])
    return folder


@pytest.fixture(scope='module')
def rows(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, ...]]]:
    """A row for each recipe that trained, for the record."""
    rows: list[tuple[str, ...]] = []
    yield rows
    if not request.config.getoption('record'):
        return
    if len(rows) < len(EVERY):
        warnings.warn(
            f'docs/records/recipes.md stays as it is: {len(rows)} of {len(EVERY)} ran', stacklevel=1
        )
        return
    head = ['recipe', 'script', 'first loss', 'last loss', 'seconds']
    write_record('recipes.md', 'recipes', f'{machine()}.\n\n{markdown_table(head, rows)}')


def shrunk(recipe: str, scenes: Path) -> Config:
    """The recipe on small images, for a few iterations, without weights and evaluation."""
    cfg = Config.fromfile(ROOT / f'configs/{recipe}.py')
    layout = next(name for name in LAYOUTS if name in recipe)
    for node in dicts(cfg._cfg_dict):
        for key in ('scale', 'crop_size', 'size'):
            if isinstance(node.get(key), (tuple, list)):
                node[key] = (SIDE, SIDE)
        if 'data_root' in node:
            node.data_root = f'{scenes}/{LAYOUTS[layout]}'
        if node.get('pretrained'):
            node.pretrained = None
        if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
            node.init_cfg = None
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    for split in ('val', 'test'):
        cfg.update({f'{split}_{part}': None for part in ('dataloader', 'cfg', 'evaluator')})
    cfg.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': ITERATIONS}
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = -1
    cfg.randomness = {'seed': 0}
    return cfg


@pytest.mark.slow
@pytest.mark.timeout(LIMIT + 60)
def test_a_recipe_trains(
    recipe: str, script: str, scenes: Path, rows: list[tuple[str, ...]], tmp_path: Path
) -> None:
    shrunk(recipe, scenes).dump(tmp_path / 'small.py')
    command = [sys.executable, SCRIPTS[script], 'small.py', '--work-dir', 'out']
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    began = time.monotonic()
    status, _, error = run(tmp_path, *command, PYTHONPATH=path)
    seconds = time.monotonic() - began
    assert status == 0, error[-3000:]
    (scalars,) = (tmp_path / 'out').glob('*/vis_data/scalars.json')
    logged = map(json.loads, scalars.read_text().splitlines())
    losses = [record['loss'] for record in logged if 'loss' in record]
    assert len(losses) == ITERATIONS and all(map(math.isfinite, losses)), losses
    rows.append((recipe, script, f'{losses[0]:.3f}', f'{losses[-1]:.3f}', f'{seconds:.0f}'))


def test_few_and_own_are_among_all_recipes() -> None:
    recipes = {recipe for recipe, _ in EVERY}
    assert len(EVERY) == len(recipes) + len(OWN) > 25
    assert {recipe for recipe, _ in FEW + OWN} <= recipes
