"""Trains every recipe of configs/ for a few iterations, on small scenes in its data set's layout.

    python tools/check_recipes.py                          # all, with tools/train.py
    python tools/check_recipes.py --only '*c4*' --iters 5  # some, longer
    python tools/check_recipes.py --script mmdet mmseg     # and one each with their own scripts

A recipe keeps its model and solver. Its images become small, and no weights are loaded. The record
of a run of all, by all scripts, is docs/recipes.md, that of a part lies in --work-dir, unless --out
names a file. A recipe that does not train makes the exit status 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from rich.progress import track

from sn_mm.benchmark.configs import dicts, mim_folder
from sn_mm.cli.errors import report_input_errors
from sn_mm.cli.files import atomic_path
from sn_mm.errors import InputError

ROOT = Path(__file__).parents[1]
SIDE = 64  # of the images, in pixels
LAYOUTS = {'coco': 'coco/', 'cityscapes': 'cityscapes/', 'ade20k': 'ade/ADEChallengeData2016/'}
METHODS = ('mask_rcnn', 'faster_rcnn', 'deeplabv3', 'deeplabv3plus', 'fcn')
OWN_SCRIPTS = {
    'mmdet': 'mask_rcnn/mask-rcnn_r50-sn_fpn_8xb2-2x_coco.py',
    'mmseg': 'deeplabv3plus/deeplabv3plus_r50-d8-sn_4xb2-40k_cityscapes-512x1024.py',
}


@dataclass
class Run:
    """The run of one recipe, with the losses of the first and the last iteration."""

    recipe: str
    script: str
    seconds: float
    first: float | None = None
    last: float | None = None
    error: str = ''


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train every recipe for a few iterations.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--only', nargs='+', metavar='PATTERN', help='some recipes')
    parser.add_argument('--iters', type=int, default=4, help='iterations of each recipe')
    parser.add_argument('--script', nargs='+', choices=OWN_SCRIPTS, default=[])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/recipes'))
    parser.add_argument(
        '--out',
        type=Path,
        help='the page; docs/recipes.md with all recipes and --script mmdet mmseg, else in '
        '--work-dir',
    )
    args = parser.parse_args()
    if args.iters < 1:
        raise InputError(f'--iters must be at least 1, got {args.iters}')
    is_all = not args.only and set(args.script) == set(OWN_SCRIPTS)
    args.out = args.out or (ROOT / 'docs' if is_all else args.work_dir) / 'recipes.md'
    return args


def recipes(patterns: list[str]) -> list[Path]:
    """The recipes for MMDetection and MMSegmentation whose names match one of the patterns."""
    files = [
        file for method in METHODS for file in sorted((ROOT / 'configs' / method).glob('*.py'))
    ]
    chosen = [f for f in files if any(fnmatch.fnmatch(f.stem, p) for p in patterns)]
    if not chosen:
        raise InputError(f'--only {" ".join(patterns)}: no recipe of this name')
    return chosen


def make_scenes(folder: Path) -> None:
    """Makes the three sets, if they do not exist yet."""
    command = [sys.executable, str(ROOT / 'tools/make_scenes.py'), str(folder)]
    options = f'--categories coco --size {SIDE} --digits 2 3 --train 8 --val 2'
    subprocess.run([*command, *options.split()], check=True, stdout=subprocess.DEVNULL)


def shrink(recipe: Path, scenes: Path, iters: int) -> Config:
    """The recipe on small images, for a number of iterations, without weights and evaluation."""
    cfg = Config.fromfile(recipe)
    layout = next(name for name in LAYOUTS if name in recipe.stem)
    for node in dicts(cfg._cfg_dict):
        for key in ('scale', 'crop_size', 'size'):
            if isinstance(node.get(key), (tuple, list)):
                node[key] = (SIDE, SIDE)
        if 'data_root' in node:
            node.data_root = f'{scenes.resolve()}/{LAYOUTS[layout]}'
        if node.get('pretrained'):
            node.pretrained = None
        if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
            node.init_cfg = None
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.sampler.type = 'InfiniteSampler'
    for split in ('val', 'test'):
        cfg.update({f'{split}_{part}': None for part in ('dataloader', 'cfg', 'evaluator')})
    cfg.train_cfg = {'type': 'IterBasedTrainLoop', 'max_iters': iters}
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = -1
    cfg.randomness = {'seed': 0}
    return cfg


def train(recipe: Path, script: Path, scenes: Path, iters: int, work_dir: Path) -> Run:
    """Trains a recipe with a script, in another process."""
    package = script.parents[2].name  # <package>/.mim/tools/train.py
    own = script.parent == ROOT / 'tools'
    name = f'{recipe.parent.name}/{recipe.stem}'
    run = Run(name, 'tools/train.py' if own else f"{package}'s train.py", 0)
    folder = work_dir / run.script.split("'")[0].replace('/', '_') / recipe.stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / 'small.py'
    shrink(recipe, scenes, iters).dump(config)
    start = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(
        [sys.executable, str(script), str(config), '--work-dir', str(folder)],
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    run.seconds = round(time.monotonic() - start)
    (folder / 'output.txt').write_text(done.stdout + done.stderr)
    losses = _losses(folder)
    if done.returncode or len(losses) < iters or not all(map(math.isfinite, losses)):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        run.error = f'exit status {done.returncode}, losses {losses}, {"".join(last)}'
    else:
        run.first, run.last = losses[0], losses[-1]
    return run


def _losses(folder: Path) -> list[float]:
    """The losses that MMEngine logged, one for each iteration."""
    files = sorted(folder.glob('*/vis_data/scalars.json'))
    lines = files[-1].read_text().splitlines() if files else []
    return [record['loss'] for record in map(json.loads, lines) if 'loss' in record]


def page(runs: list[Run], iters: int) -> str:
    """The record as Markdown."""
    lines = [
        '# The recipes, run',
        '',
        f'Written by `python tools/check_recipes.py`: each recipe for {iters} iterations on small '
        f'scenes ({SIDE} pixels) in the layout of its data set, from random weights, in one '
        f'process; seconds include the start. That they run is all it shows. '
        f'torch {torch.__version__}, {os.cpu_count()} {platform.machine()} cores.',
        '',
        '| recipe | script | first loss | last loss | seconds |',
        '|---|---|---|---|---|',
    ]
    for run in runs:
        losses = f'{run.first:.3f} | {run.last:.3f}' if not run.error else f'{run.error} |'
        lines.append(f'| {run.recipe} | {run.script} | {losses} | {run.seconds:.0f} |')
    return '\n'.join(lines) + '\n'


@report_input_errors
def main() -> None:
    args = parse_args()
    jobs = [(recipe, ROOT / 'tools/train.py') for recipe in recipes(args.only or ['*'])]
    for package in args.script:
        script = mim_folder(package) / 'tools/train.py'
        jobs.append((ROOT / 'configs' / OWN_SCRIPTS[package], script))
    scenes = args.work_dir / 'scenes'
    make_scenes(scenes)
    runs = []
    for recipe, script in track(jobs, 'recipes'):
        runs.append(train(recipe, script, scenes, args.iters, args.work_dir))
        print(runs[-1].recipe, runs[-1].script, runs[-1].error or 'trains', flush=True)
    with atomic_path(args.out) as path:
        path.write_text(page(runs, args.iters))
    if any(run.error for run in runs):
        sys.exit(1)


if __name__ == '__main__':
    main()
