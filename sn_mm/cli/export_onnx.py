"""Writes a trained model as ONNX, open to any batch and image size, and checks it in onnxruntime.

A segmentor becomes `image` -> `logits`, at the image's size. Of a detector, backbone and neck are
written: `image` -> `level0`, `level1` ... Images are (N, 3, H, W), float32, after the normalization
that the config's data_preprocessor names.
"""

from __future__ import annotations

import warnings
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn import functional as F

from ..atomic import atomic_path
from ..checkpoints.read import read_checkpoint, weights_of
from ..errors import InputError
from ..output.files import check_file
from ..switch.toolbox import toolbox
from .checkpoint import load_weights
from .config import load_config
from .errors import report_input_errors

TOLERANCE = 1e-3
"""Relative to the largest output. Rounding stays below it; an image size recorded as a constant
does not."""


class Exported(nn.Module):
    """From an image to a segmentor's logits or a detector's feature levels, as tensors.

    Args:
        model: A toolbox's model, in evaluation mode.

    Raises:
        InputError: It has no backbone.
    """

    model: Any  # a toolbox's class

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not hasattr(model, 'extract_feat'):
            raise InputError(f'{type(model).__name__} has no backbone to export')
        self.model = model
        self.segments = hasattr(model, 'decode_head')

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.segments:
            return tuple(self.model.extract_feat(image))
        logits = self.model(image, mode='tensor')
        align_corners = self.model.align_corners
        return F.interpolate(logits, image.shape[2:], mode='bilinear', align_corners=align_corners)


def export(network: nn.Module, image: Tensor, path: Path, opset: int = 17) -> None:
    """Writes ``network`` with batch, height and width of input and outputs left open.

    Args:
        network: From (N, 3, H, W) to one tensor or several, in evaluation mode.
        image: An input to record with.
        path: The file to write.
        opset: Version of ONNX's operators.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # It warns that it is the older exporter, and that sizes may be constants, which check()
        # refuses. The newer exporter takes several times as long, with any norm.
        warnings.simplefilter('ignore')
        outputs = network(image)
        names = (
            ['logits'] if torch.is_tensor(outputs) else [f'level{i}' for i in range(len(outputs))]
        )
        torch.onnx.export(
            network,
            (image,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=['image'],
            output_names=names,
            dynamic_axes={
                'image': {0: 'n', 2: 'h', 3: 'w'},
                **{name: {0: 'n', 2: f'{name}_h', 3: f'{name}_w'} for name in names},
            },
        )


@torch.no_grad()
def check(network: nn.Module, path: Path, images: list[Tensor]) -> float:
    """Compares a file in onnxruntime with the network that it was written from.

    Returns:
        The largest difference, relative to the largest output where that is above 1.

    Raises:
        InputError: Another shape, or a difference above :data:`TOLERANCE`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    largest = 0.0
    for image in images:
        outputs = network(image)
        wanted = [outputs] if torch.is_tensor(outputs) else outputs
        for info, got, want in zip(
            session.get_outputs(), session.run(None, {'image': image.numpy()}), wanted
        ):
            output = torch.from_numpy(got)
            same = output.shape == want.shape
            error = (
                ((output - want).abs().max() / want.abs().max().clamp(min=1)).item() if same else 0
            )
            if not same or not error <= TOLERANCE:
                raise InputError(
                    f'the file would not be the model at all sizes: at {tuple(image.shape)}, '
                    f'onnxruntime gives {info.name} as {tuple(output.shape)}, {error:.1e} from the '
                    f"model's {tuple(want.shape)}"
                )
            largest = max(largest, error)
    return largest


def load(args: Namespace) -> nn.Module:
    """Builds the config's model with the checkpoint's weights, all of them or none."""
    weights = weights_of(read_checkpoint(args.checkpoint))
    cfg = load_config(args, 'test')
    init_default_scope(toolbox(cfg))
    model = MODELS.build(cfg.model)
    weights = {key.removeprefix('module.'): tensor for key, tensor in weights.items()}
    load_weights(model, weights, args.checkpoint)
    return model.eval()


@report_input_errors
def run(args: Namespace) -> None:
    if find_spec('onnx') is None:
        raise InputError('writing ONNX needs the package onnx (pip install onnx onnxruntime)')
    check_file('OUT', args.out)
    network = Exported(load(args)).eval()
    height, width = args.shape
    images = [torch.randn(1, 3, height, width), torch.randn(2, 3, width + 32, height + 64)]
    with atomic_path(args.out) as path:
        export(network, images[0], path, args.opset)
        line = f'{args.out}: {path.stat().st_size / 1e6:.1f} MB, opset {args.opset}, '
        if find_spec('onnxruntime') is None:
            line += 'not compared with the model: onnxruntime is not installed'
        else:
            error = check(network, path, images)
            sizes = ' and '.join('x'.join(map(str, image.shape)) for image in images)
            line += f'differs from the model by {error:.1e} in onnxruntime at {sizes}'
    print(line)
