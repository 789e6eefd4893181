"""One scene: ground in a few regions, digits over it, and the exact label of every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from ..errors import InputError
from .sources import GROUNDS, SPLITS, Sources

# Labels of the pixels of `Scene.semantic`: these names, by their index.
UNLABELLED, DIGIT = 'unlabelled', 'digit'
SEMANTIC_NAMES: tuple[str, ...] = (UNLABELLED, *GROUNDS, DIGIT)

# Raise this whenever a change to this package changes the pixels or the labels that it makes.
RECIPE = 1
# Allowed height and width, in pixels, number of digits, and length of a digit turned any way.
SIDES = (64, 2048)
MAX_DIGITS = 20
MAX_DIGIT_SIZE = 0.7
REGIONS = (2, 4)
# Probability that one region is clutter.
CLUTTER_SHARE = 0.15
# Bend of the borders between regions, as a share of the shorter side.
WOBBLE = 0.10
# Digits are turned by at most this angle, in degrees (more would turn a 6 into a 9).
MAX_ANGLE = 25.0
# Growth of the strokes on each side, in pixels of the 28 x 28 original.
THICKEN = 0.6
# Smallest distance, in the Lab space (lightness 0..100), of a digit's colour from the mean colour
# of each ground and digit that it touches.
MIN_CONTRAST = 45.0
# Of each digit at least this share of its pixels stays visible, and at least this many pixels.
MIN_VISIBLE_SHARE = 0.5
MIN_VISIBLE_PIXELS = 10
# Digits of this length, in pixels, still have that many.
MIN_DIGIT_LENGTH = 12
# Standard deviation of the camera noise, in grey levels.
NOISE = 3.0
PLACEMENT_TRIALS = 10
COLOUR_TRIALS = 32


@dataclass(frozen=True)
class Variety:
    """How much scenes differ from one another.

    Args:
        regions: Smallest and largest number of regions of a scene, each of another kind of ground.
        light: Smallest and largest factor on all pixels of a scene. Default: (1, 1).
        contrast: Smallest and largest factor on their distance from the scene's mean. Default:
            (1, 1).
        colour: Smallest and largest factor on each channel of a scene. Default: (1, 1).
    """

    regions: tuple[int, int]
    light: tuple[float, float] = (1, 1)
    contrast: tuple[float, float] = (1, 1)
    colour: tuple[float, float] = (1, 1)


# low: all kinds of ground in every scene, in one light. high: one or two kinds in each, from dusk
# to glare, from haze to clear air.
VARIETIES = {
    'low': Variety(regions=(len(GROUNDS), len(GROUNDS))),
    'medium': Variety(regions=REGIONS),
    'high': Variety(regions=(1, 2), light=(0.3, 1.3), contrast=(0.35, 1.2), colour=(0.75, 1.25)),
}


@dataclass(frozen=True)
class SceneOptions:
    """Size and content of scenes.

    Args:
        size: Height and width in pixels. Default: (160, 160).
        digits: Smallest and largest number of digits to put into a scene. A digit that finds no
            place without hiding another is left out, so a crowded scene may have fewer, but at
            least one. Default: (2, 5).
        digit_size: Smallest and largest longer side of an upright digit, as a share of the scene's
            shorter side. Default: (0.19, 0.40), which is 30 to 64 pixels of 160.
        variety: How much scenes differ from one another in light, contrast, colour and kinds of
            ground: a key of :data:`VARIETIES`. Default: 'medium'.

    Raises:
        InputError: A size, a number or a share is out of range.
    """

    size: tuple[int, int] = (160, 160)
    digits: tuple[int, int] = (2, 5)
    digit_size: tuple[float, float] = (0.19, 0.40)
    variety: str = 'medium'

    def __post_init__(self) -> None:
        for side in self.size:
            if not SIDES[0] <= side <= SIDES[1]:
                raise InputError(f'size {side}: {SIDES[0]} to {SIDES[1]} pixels are allowed')
        if self.variety not in VARIETIES:
            raise InputError(f'variety {self.variety}: {", ".join(VARIETIES)} are allowed')
        low, high = self.digits
        if not 1 <= low <= high <= MAX_DIGITS:
            raise InputError(f'digits {low} {high}: 1 <= low <= high <= {MAX_DIGITS} is allowed')
        small, large = self.digit_size
        if not 0 < small <= large <= MAX_DIGIT_SIZE:
            raise InputError(
                f'digit size {small} {large}: 0 < low <= high <= {MAX_DIGIT_SIZE} is allowed'
            )
        if small * min(self.size) < MIN_DIGIT_LENGTH:
            raise InputError(
                f'digit size {small} of {min(self.size)} pixels: '
                f'a digit is at least {MIN_DIGIT_LENGTH} pixels long'
            )


@dataclass(frozen=True)
class Scene:
    """A picture and its labels.

    Attributes:
        image: The picture, (H, W, 3) uint8, blue first.
        semantic: Index into :data:`SEMANTIC_NAMES` of each pixel, (H, W) uint8.
        instance: 0 for ground, k for the visible part of the k-th digit, (H, W) uint8.
        classes: Class 0..9 of each digit, in the order of ``instance``.
    """

    image: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    classes: tuple[int, ...]

    @cached_property
    def jpeg(self) -> bytes:
        """The picture as a JPEG file."""
        return cv2.imencode('.jpg', self.image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def make_scene(sources: Sources, options: SceneOptions, seed: int, split: str, index: int) -> Scene:
    """Makes one scene. It depends on the arguments alone, not on the scenes made before.

    Args:
        sources: The pixels of the split.
        options: Size and content of the scene.
        seed: Seed of the set, at least 0.
        split: ``'train'`` or ``'val'``.
        index: Number of the scene within its split, from 0.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    variety = VARIETIES[options.variety]
    image, semantic = _lay_ground(sources, options.size, variety.regions, rng)
    instance = np.zeros(options.size, np.uint8)
    classes: list[int] = []
    full_areas: list[int] = []
    for _ in range(rng.integers(options.digits[0], options.digits[1] + 1)):
        label, picture = sources.digit(rng)
        length = rng.uniform(*options.digit_size) * min(options.size)
        cover = _draw_digit(picture, length, rng.uniform(-MAX_ANGLE, MAX_ANGLE))
        solid = cover >= 0.5
        spot = _find_spot(instance, solid, full_areas, rng)
        if spot is None:
            continue
        colour = _contrasting_colour(image[spot], semantic[spot], instance[spot], solid, rng)
        image[spot] += cover[..., None] * (_shade(colour, cover.shape, rng) - image[spot])
        classes.append(label)
        full_areas.append(int(solid.sum()))
        instance[spot][solid] = len(classes)
    semantic[instance > 0] = SEMANTIC_NAMES.index(DIGIT)
    if options.variety == 'high':  # the others draw nothing more, and stay as they were
        image = _expose(image, variety, rng)
    image += NOISE * rng.standard_normal(image.shape, dtype=np.float32)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), semantic, instance, tuple(classes))


def _expose(image: np.ndarray, variety: Variety, rng: np.random.Generator) -> np.ndarray:
    """Gives a scene, (H, W, 3) float32, a contrast, a light and a tint of its own."""
    middle = image.mean()
    gain = rng.uniform(*variety.light) * rng.uniform(*variety.colour, 3)
    pixels = (middle + rng.uniform(*variety.contrast) * (image - middle)) * gain
    return pixels.astype(np.float32)


def _lay_ground(
    sources: Sources, size: tuple[int, int], regions: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Fills the cells of a bent Voronoi diagram with different kinds of ground.

    Returns:
        The picture, (H, W, 3) float32, and its semantic labels, (H, W) uint8.
    """
    height, width = size
    count = rng.integers(regions[0], regions[1] + 1)
    names: list[str | None] = [list(GROUNDS)[i] for i in rng.permutation(len(GROUNDS))[:count]]
    if rng.random() < CLUTTER_SHARE:
        names[0] = None
    distances = []
    for _ in names:
        knots = rng.standard_normal((4, 4), dtype=np.float32)
        bend = cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC)
        rows = np.arange(height) - rng.uniform(0, height)
        columns = np.arange(width) - rng.uniform(0, width)
        distance = np.sqrt(np.add.outer(rows**2, columns**2))
        distances.append(distance + WOBBLE * min(size) * bend)
    region = np.argmin(distances, axis=0)
    image = np.empty((height, width, 3), np.float32)
    semantic = np.empty(size, np.uint8)
    for number, name in enumerate(names):
        here = region == number
        np.copyto(image, sources.ground(name, size, rng), where=here[..., None])
        semantic[here] = SEMANTIC_NAMES.index(name or UNLABELLED)
    return image, semantic


def _draw_digit(picture: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Scales, turns and thickens a digit.

    Args:
        picture: The original, (28, 28) uint8 with ink 255.
        length: Longer side of the upright digit, in pixels.
        angle: Rotation, in degrees.

    Returns:
        How much of each pixel the digit covers, (h, w) float32 in 0..1, tight around it. The digit
        is where that is at least 0.5.
    """
    rows, columns = np.nonzero(picture > 64)
    low = np.array([columns.min(), rows.min()])
    high = np.array([columns.max(), rows.max()])
    scale = float(length / (1 + (high - low).max() + 2 * THICKEN))
    side = int(np.ceil(1.5 * length)) + 4
    turn = cv2.getRotationMatrix2D(((low + high) / 2).tolist(), angle, scale)
    turn[:, 2] += (side - 1) / 2 - (low + high) / 2
    ink = cv2.warpAffine(picture, turn, (side, side), flags=cv2.INTER_CUBIC)
    growth = 2 * round(THICKEN * scale) + 1
    thick = cv2.dilate(ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (growth, growth)))
    cover = np.clip((thick / np.float32(255) - 0.4) * scale + 0.5, 0, 1)
    solid_rows, solid_columns = np.nonzero(cover >= 0.5)
    return cover[
        solid_rows.min() : solid_rows.max() + 1, solid_columns.min() : solid_columns.max() + 1
    ]


def _find_spot(
    instance: np.ndarray, solid: np.ndarray, full_areas: list[int], rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Looks for a place where a digit leaves enough of the earlier ones visible.

    Args:
        instance: The digits so far, (H, W).
        solid: Where the new digit is, (h, w) bool.
        full_areas: Number of pixels of each earlier digit before anything covered it.

    Returns:
        Rows and columns of the place, or None after the last trial.
    """
    height, width = solid.shape
    needed = np.maximum(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * np.array(full_areas))
    visible = np.bincount(instance.ravel(), minlength=len(full_areas) + 1)
    for _ in range(PLACEMENT_TRIALS):
        top = rng.integers(instance.shape[0] - height + 1)
        left = rng.integers(instance.shape[1] - width + 1)
        spot = (slice(top, top + height), slice(left, left + width))
        hidden = np.bincount(instance[spot][solid], minlength=len(full_areas) + 1)
        if np.all((visible - hidden)[1:] >= needed):
            return spot
    return None


def _contrasting_colour(
    image: np.ndarray,
    semantic: np.ndarray,
    instance: np.ndarray,
    solid: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws a colour that stands out from each ground and digit that a new digit covers or touches.

    Args:
        image: The picture around the new digit, (h, w, 3).
        semantic: Its ground, (h, w).
        instance: Its digits so far, (h, w).
        solid: Where the new digit is, (h, w) bool.

    Returns:
        Blue, green and red, (3,) float32 in 0..255.
    """
    near = cv2.dilate(solid.astype(np.uint8), np.ones((5, 5))) > 0
    keys = semantic[near] + len(SEMANTIC_NAMES) * instance[near].astype(int)
    means = np.stack([image[near][keys == key].mean(axis=0) for key in np.unique(keys)])
    hsv = rng.uniform((0, 0.3, 0.3), (360, 1, 1), (COLOUR_TRIALS, 3)).astype(np.float32)
    colours = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0] * 255
    contrast = np.linalg.norm(_lab(colours)[:, None] - _lab(means), axis=2).min(axis=1)
    enough = np.flatnonzero(contrast >= MIN_CONTRAST)
    return colours[enough[0] if len(enough) else contrast.argmax()]


def _lab(colours: np.ndarray) -> np.ndarray:
    """Converts colours, (M, 3) blue first in 0..255, to the Lab space."""
    return cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_BGR2LAB)[0]


def _shade(colour: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Lights a colour from one side: (h, w, 3), from 15% darker to 15% brighter."""
    direction = rng.uniform(0, 2 * np.pi)
    rows, columns = (np.linspace(-1, 1, length) for length in shape)
    slope = np.add.outer(rows * np.sin(direction), columns * np.cos(direction)) / np.sqrt(2)
    return (colour * (1 + 0.15 * slope[..., None])).astype(np.float32)
