"""Converts a ResNet with SN that the paper's authors publish, for a ready-made ResNet to load.

It comes from their classification, detection or segmentation repository. The lines printed at the
end are the config to use the result with: its norm_cfg makes the outputs equal theirs.
"""

from __future__ import annotations

from argparse import Namespace
from hashlib import sha256
from pathlib import Path

import torch

from ..atomic import atomic_path
from ..checkpoints.authors import convert
from ..checkpoints.read import read_checkpoint, weights_of
from ..errors import InputError, some
from ..output.files import check_file
from ..version import __version__
from .errors import report_input_errors


def as_config(value: object) -> str:
    """Writes a dictionary as configs do: dict(type='SN', correction=1)."""
    if not isinstance(value, dict):
        return repr(value)
    return f'dict({", ".join(f"{key}={as_config(item)}" for key, item in value.items())})'


@report_input_errors
def run(args: Namespace) -> None:
    check_file('DST', args.dst)
    keys = ('state_dict', 'model')  # 'model' in the detection repository
    checkpoint = read_checkpoint(args.src, keys)
    try:
        converted = convert(weights_of(checkpoint, keys), args.to)
    except InputError as error:
        raise InputError(f'checkpoint {args.src} cannot be converted: {error}') from error

    backbone = converted.backbone
    meta = {
        'source': Path(args.src).name,
        'source_sha256': sha256(Path(args.src).read_bytes()).hexdigest(),
        'source_naming': converted.naming,
        'converted_for': args.to,
        'backbone': backbone,
        'sn_mm_version': __version__,
    }
    with atomic_path(args.dst) as path:
        torch.save({'meta': meta, 'state_dict': converted.state_dict}, path)

    layers = sum(name.endswith('.mean_weight') for name in converted.state_dict)
    print(f'{args.dst}: ResNet-{backbone["depth"]} with {layers} SN layers, {converted.naming}')
    for kind, names in converted.left_out.items():
        print(f'left out, {kind}: {some(names, 3)}')
    if args.to == 'mmpretrain':
        print(f'load_from = {args.dst!r}')
    else:
        backbone = {**backbone, 'init_cfg': {'type': 'Pretrained', 'checkpoint': args.dst}}
    print(f"custom_imports = dict(imports=['sn_mm'])\nmodel = dict(backbone={as_config(backbone)})")
