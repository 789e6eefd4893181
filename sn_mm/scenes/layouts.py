"""Writers of the three directory layouts that the ready-made dataset configs read.

========== =================== ================================ =====================
label      ground              Cityscapes (trainId, labelId)    ADE20K (file's value)
========== =================== ================================ =====================
brick      a brick pavement    wall (3, 12)                     wall (1)
grass      a lawn              vegetation (8, 21)               grass (10)
gravel     gravel              road (0, 7)                      road (7)
soil       the moon's surface  terrain (9, 22)                  earth (14)
sky        the night sky       sky (10, 23)                     sky (3)
digit      any of the digits   traffic sign (7, 20)             signboard (44)
unlabelled other photographs   unlabeled (255, 0)               other (0)
========== =================== ================================ =====================
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from .compose import SEMANTIC_NAMES, Scene
from .sources import SPLITS

# Label: (class name, trainId, labelId).
CITYSCAPES_CLASSES: dict[str, tuple[str, int, int]] = {
    'unlabelled': ('unlabeled', 255, 0),
    'brick': ('wall', 3, 12),
    'grass': ('vegetation', 8, 21),
    'gravel': ('road', 0, 7),
    'soil': ('terrain', 9, 22),
    'sky': ('sky', 10, 23),
    'digit': ('traffic sign', 7, 20),
}
# Label: (class name, value in the annotation file, which is 1 more than the class index).
ADE20K_CLASSES: dict[str, tuple[str, int]] = {
    'unlabelled': ('other', 0),
    'brick': ('wall', 1),
    'grass': ('grass', 10),
    'gravel': ('road', 7),
    'soil': ('earth', 14),
    'sky': ('sky', 3),
    'digit': ('signboard', 44),
}
# COCO's supercategories and categories in the order of their ids, which leave out a few numbers.
COCO_CATEGORIES: dict[str, str] = {
    'person': 'person',
    'vehicle': 'bicycle, car, motorcycle, airplane, bus, train, truck, boat',
    'outdoor': 'traffic light, fire hydrant, stop sign, parking meter, bench',
    'animal': 'bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe',
    'accessory': 'backpack, umbrella, handbag, tie, suitcase',
    'sports': 'frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, '
    'skateboard, surfboard, tennis racket',
    'kitchen': 'bottle, wine glass, cup, fork, knife, spoon, bowl',
    'food': 'banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake',
    'furniture': 'chair, couch, potted plant, bed, dining table, toilet',
    'electronic': 'tv, laptop, mouse, remote, keyboard, cell phone',
    'appliance': 'microwave, oven, toaster, sink, refrigerator',
    'indoor': 'book, clock, vase, scissors, teddy bear, hair drier, toothbrush',
}
COCO_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def coco_categories(category_set: str) -> list[dict[str, Any]]:
    """Entries of a COCO file's ``categories``.

    Args:
        category_set: ``'digits'`` for ten categories named 0 to 9, ``'coco'`` for COCO's 80. In
            both, digit d has the id d + 1: under ``'coco'``, 0 is a person and 9 a traffic light.
            Any other name, such as ``'digit'``, for one category of that name.
    """
    if category_set not in ('digits', 'coco'):
        return [{'supercategory': category_set, 'id': 1, 'name': category_set}]
    if category_set == 'digits':
        return [{'supercategory': 'digit', 'id': d + 1, 'name': str(d)} for d in range(10)]
    ids = (number for number in range(1, 91) if number not in COCO_UNUSED_IDS)
    return [
        {'supercategory': group, 'id': next(ids), 'name': name}
        for group, names in COCO_CATEGORIES.items()
        for name in names.split(', ')
    ]


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Cuts a mask into polygons without holes; pycocotools draws exactly the mask from them.

    Polygons rather than run lengths, because many ready-made configs load no others. Each column of
    the mask is a few vertical runs of pixels. Runs of neighbouring columns are chained into one
    piece where each touches just the other; where they split, merge or end, so does the piece.

    Args:
        mask: (H, W) bool.

    Returns:
        The corners x, y, x, y, ... of each piece, in pixels.
    """
    steps = np.diff(np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    columns, starts = np.nonzero(steps == 1)
    stops = np.nonzero(steps == -1)[1]
    touch = (
        (columns == columns[:, None] + 1) & (starts < stops[:, None]) & (stops > starts[:, None])
    )
    linked = touch & (touch.sum(axis=1, keepdims=True) == 1) & (touch.sum(axis=0) == 1)
    runs = np.stack([columns, starts, stops], axis=1).astype(float).tolist()
    following = {int(run): int(after) for run, after in np.argwhere(linked)}
    pieces = []
    for first in sorted(set(range(len(runs))) - set(following.values())):
        chain = [first]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        upper = [z for x, top, _ in (runs[run] for run in chain) for z in (x, top, x + 1, top)]
        lower = [
            z
            for x, _, bottom in (runs[run] for run in reversed(chain))
            for z in (x + 1, bottom, x, bottom)
        ]
        pieces.append(upper + lower)
    return pieces


class Layout:
    """Writes scenes the way one data set lays out its files.

    Args:
        root: The folder to write into; it exists and is empty.

    Attributes:
        folder: Name that the folder has below a data root.
    """

    folder: ClassVar[str]

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, scene: Scene, split: str, index: int) -> None:
        """Writes one scene.

        Args:
            scene: The picture and its labels.
            split: ``'train'`` or ``'val'``.
            index: Number of the scene within its split, from 0.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Writes the files about all scenes."""


class Coco(Layout):
    """COCO's instance layout: JPEG pictures and one JSON file for each split.

    Args:
        root: The folder to write into; it exists and is empty.
        category_set: See :func:`coco_categories`. Default: ``'digits'``.
    """

    folder = 'coco'

    def __init__(self, root: Path, category_set: str = 'digits') -> None:
        super().__init__(root)
        self.categories = coco_categories(category_set)
        self.images: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self.annotations: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            (root / f'{split}2017').mkdir()

    def add(self, scene: Scene, split: str, index: int) -> None:
        height, width = scene.instance.shape
        image_id = index + 1
        name = f'{image_id:012d}.jpg'
        (self.root / f'{split}2017' / name).write_bytes(scene.jpeg)
        self.images[split].append(
            {'id': image_id, 'file_name': name, 'height': height, 'width': width, 'license': 1}
        )
        for number, digit in enumerate(scene.classes, start=1):
            mask = scene.instance == number
            x, y, box_width, box_height = cv2.boundingRect(mask.astype(np.uint8))
            self.annotations[split].append(
                {
                    'id': len(self.annotations[split]) + 1,
                    'image_id': image_id,
                    'category_id': 1 if len(self.categories) == 1 else digit + 1,
                    'iscrowd': 0,
                    'area': float(mask.sum()),
                    'bbox': [float(x), float(y), float(box_width), float(box_height)],
                    'segmentation': polygons(mask),
                }
            )

    def finish(self) -> None:
        (self.root / 'annotations').mkdir()
        for split in SPLITS:
            content = {
                'info': {
                    'description': 'MNIST digits over scikit-image photographs',
                    'version': '1.0',
                },
                'licenses': [
                    {'id': 1, 'name': 'Those of MNIST and of the scikit-image data', 'url': ''}
                ],
                'images': self.images[split],
                'annotations': self.annotations[split],
                'categories': self.categories,
            }
            path = self.root / 'annotations' / f'instances_{split}2017.json'
            path.write_text(json.dumps(content))


class Cityscapes(Layout):
    """Cityscapes' semantic layout: PNG pictures, and maps of trainIds and of labelIds."""

    folder = 'cityscapes'
    city = 'digits'

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        for kind in ('leftImg8bit', 'gtFine'):
            for split in SPLITS:
                (root / kind / split / self.city).mkdir(parents=True)

    def add(self, scene: Scene, split: str, index: int) -> None:
        train_ids, label_ids = (
            np.array([CITYSCAPES_CLASSES[name][column] for name in SEMANTIC_NAMES], np.uint8)
            for column in (1, 2)
        )
        path = Path(split, self.city, f'{self.city}_{index:06d}_000000')
        _write_png(self.root / 'leftImg8bit' / f'{path}_leftImg8bit.png', scene.image)
        labels = self.root / 'gtFine'
        _write_png(labels / f'{path}_gtFine_labelTrainIds.png', train_ids[scene.semantic])
        _write_png(labels / f'{path}_gtFine_labelIds.png', label_ids[scene.semantic])


class Ade20k(Layout):
    """ADE20K's semantic layout: JPEG pictures, and maps of 1 + class index, 0 for all else."""

    folder = 'ade'

    def __init__(self, root: Path) -> None:
        super().__init__(root / 'ADEChallengeData2016')
        for kind in ('images', 'annotations'):
            for long_name in ('training', 'validation'):
                (self.root / kind / long_name).mkdir(parents=True)

    def add(self, scene: Scene, split: str, index: int) -> None:
        values = np.array([ADE20K_CLASSES[name][1] for name in SEMANTIC_NAMES], np.uint8)
        long_name = 'training' if split == 'train' else 'validation'
        name = f'ADE_{split}_{index + 1:08d}'
        (self.root / 'images' / long_name / f'{name}.jpg').write_bytes(scene.jpeg)
        _write_png(self.root / 'annotations' / long_name / f'{name}.png', values[scene.semantic])


LAYOUTS: dict[str, type[Layout]] = {'coco': Coco, 'cityscapes': Cityscapes, 'ade20k': Ade20k}


def _write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG file, raising the OSError that OpenCV's own writer would swallow."""
    path.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
