"""Makes a small instance-segmentation set of real data: nuclei under a fluorescence microscope.

It writes `coco` in COCO's layout from the one picture of 512 x 512 pixels that the
package stardist ships, with 183 nuclei labelled by hand (Caicedo et al., Nature Methods 16, 2019).
Training images are windows at random places of its left part, turned and mirrored; the validation
images are the tiles of its right part, so that no pixel is in both.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..scenes.compose import Scene
from ..scenes.layouts import Coco
from ..scenes.sources import read_picture
from .errors import report_input_errors

SIZE = 96
BORDER = 320
"""Pixels; the columns left of it are for training."""
SMALLEST = 20
"""Pixels that a nucleus must have in a window, to be labelled there."""


def window(image: np.ndarray, labels: np.ndarray, top: int, left: int, turn: int) -> Scene:
    """Cuts a window out of the picture.

    Args:
        image: (H, W) uint8.
        labels: Number of the nucleus of each pixel, (H, W); 0: none.
        top: First row.
        left: First column.
        turn: From 0 to 7: quarter turns, and from 4 on mirrored before.
    """
    parts = []
    for plane in (image, labels):
        part = plane[top : top + SIZE, left : left + SIZE]
        parts.append(np.ascontiguousarray(np.rot90(part[:, ::-1] if turn > 3 else part, turn % 4)))
    pixels, numbers = parts
    instance = np.zeros(numbers.shape, np.uint8)
    count = 0
    for number in np.unique(numbers[numbers > 0]):
        nucleus = numbers == number
        if nucleus.sum() >= SMALLEST:
            count += 1
            instance[nucleus] = count
    semantic = (instance > 0).astype(np.uint8)
    return Scene(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), semantic, instance, (0,) * count)


def write_set(home: Path, train: int, seed: int) -> int:
    """Writes the set into an empty folder.

    Args:
        home: The folder.
        train: Training images.
        seed: Of their places.

    Returns:
        The number of validation images.
    """
    image, labels = (
        read_picture('stardist', 'data', 'images', name, flags=cv2.IMREAD_UNCHANGED)
        for name in ('img2d.tif', 'mask2d.tif')
    )
    grey = np.clip(image, 0, 255).astype(np.uint8)
    layout = Coco(home, 'nucleus')
    rng = np.random.default_rng(seed)
    for index in range(train):
        top = int(rng.integers(grey.shape[0] - SIZE + 1))
        left = int(rng.integers(BORDER - SIZE + 1))
        layout.add(window(grey, labels, top, left, int(rng.integers(8))), 'train', index)
    tiles = [
        (top, left)
        for top in range(0, grey.shape[0] - SIZE + 1, SIZE)
        for left in range(BORDER, grey.shape[1] - SIZE + 1, SIZE)
    ]
    for index, (top, left) in enumerate(tiles):
        layout.add(window(grey, labels, top, left, 0), 'val', index)
    layout.finish()
    return len(tiles)


@report_input_errors
def run(args: Namespace) -> None:
    target: Path = args.out_root / Coco.folder
    if target.exists():
        raise InputError(f'{target} exists: move it, or choose another folder')
    home = args.out_root / f'.{Coco.folder}.partial'
    try:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        count = write_set(home, args.train, args.seed)
        home.rename(target)
    except OSError as error:
        raise InputError(f'cannot write into {args.out_root}: {error.strerror or error}') from error
    print(f'{target}: {args.train} train and {count} val images')
