"""Two small trainings of real models: one by iterations, one by epochs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).parents[2]
SIDE = 128  # of the images, in pixels
MODELS = {
    'segmentation': 'deeplabv3plus_r18-d8-sn_2xb2-150_scenes',
    'detection': 'mask-rcnn_r18-sn_fpn_2xb2-3e_scenes',
}


def make_scenes(folder: Path) -> None:
    """Makes the images and labels that both train on, if they do not exist yet."""
    command = [sys.executable, str(ROOT / 'tools/make_scenes.py'), str(folder)]
    options = f'--layout coco cityscapes --size {SIDE} --digits 2 4 --train 16 --val 4'
    subprocess.run([*command, *options.split()], check=True, stdout=subprocess.DEVNULL)


def write_config(model: str, scenes: Path, path: Path) -> None:
    """Writes the config of a short training that validates and saves often.

    Args:
        model: A key of :data:`MODELS`. Segmentation goes by iterations and has dropout; detection
            goes by epochs, its workers live on between them, and its heads sample at random. Both
            augment at random.
        scenes: The folder of :func:`make_scenes`.
        path: The file to write.
    """
    os.environ['SCENES'] = str(scenes.resolve())
    cfg = Config.fromfile(ROOT / 'configs/demo' / f'{MODELS[model]}.py')
    saving = cfg.default_hooks.checkpoint
    saving.max_keep_ckpts = 2
    if model == 'segmentation':
        cfg.train_cfg.update(max_iters=48, val_interval=16)
        saving.update(interval=2, save_best='mIoU')
    else:
        cfg.train_cfg.update(max_epochs=8, val_interval=3)
        saving.update(interval=1, save_best='coco/bbox_mAP')
        cfg.train_dataloader.dataset.pipeline.insert(2, {'type': 'PhotoMetricDistortion'})
        cfg.train_dataloader.update(num_workers=2, persistent_workers=True)
    cfg.default_hooks.logger.interval = 1
    cfg.randomness = {'seed': 0}
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(path)
