"""The inputs that norm layers see in the models that SN is for.

A network's inputs follow from the size of its images. A GPU gets the images of the published
recipes, two of them; a CPU gets images of an eighth of the pixels, of the same proportions and a
size that the network accepts.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple


class Case(NamedTuple):
    """Inputs of one size: the model that they come from, and (N, C, H, W)."""

    model: str
    shape: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f'{self.model} {"x".join(map(str, self.shape))}'


# (channels, stride) of the inputs behind a norm. ResNet-50, and a pyramid of 256 channels.
_RESNET_FPN = [
    (64, 2), (64, 4), (256, 4), (128, 4), (128, 8), (512, 8), (256, 8), (256, 16), (1024, 16),
    (512, 16), (512, 32), (2048, 32), (256, 32),
]  # fmt: skip
# ResNet-50-d8 with a three-convolution stem, and DeepLabV3+'s head.
_DEEPLAB = [
    (32, 2), (64, 2), (64, 4), (256, 4), (128, 4), (128, 8), (512, 8), (256, 8), (1024, 8),
    (2048, 8), (48, 4), (512, 4),
]  # fmt: skip
_IMAGES = {  # height and width: as the recipe pads them, an eighth of that
    'R50-FPN': {'cuda': (800, 1344), 'cpu': (288, 480)},
    'DeepLab': {'cuda': (512, 1024), 'cpu': (184, 360)},
}
_NETWORKS = {'R50-FPN': _RESNET_FPN, 'DeepLab': _DEEPLAB}
_FIXED = [
    ('FPN P2', (2, 256, 200, 334)),
    ('RoI head', (512, 64, 7, 7)),
    ('RoI head', (512, 256, 7, 7)),
    ('RoI head', (256, 256, 14, 14)),
    ('square', (2, 64, 128, 128)),
    ('square', (2, 256, 64, 64)),
    ('square', (2, 512, 32, 32)),
    ('square', (4, 256, 56, 56)),
    ('tiny', (2, 64, 4, 4)),
]


def cases(device_type: str) -> Iterator[Case]:
    """All inputs of a device of this type, the largest of a network first."""
    for model, layers in _NETWORKS.items():
        height, width = _IMAGES[model]['cuda' if device_type == 'cuda' else 'cpu']
        for channels, stride in layers:
            yield Case(model, (2, channels, ceil(height / stride), ceil(width / stride)))
    for model, shape in _FIXED:
        yield Case(model, shape)
