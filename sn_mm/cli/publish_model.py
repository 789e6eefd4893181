"""Writes a checkpoint to give away: weights and meta, with the start of its SHA-256 in the name.

The same weights and meta always give the same file.
"""

from __future__ import annotations

from argparse import Namespace
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import torch

from ..atomic import atomic_path
from ..checkpoints.read import read_checkpoint
from ..checkpoints.slim import slim
from ..errors import InputError
from ..output.files import check_folder
from .errors import report_input_errors


@report_input_errors
def run(args: Namespace) -> None:
    check_folder('OUT', Path(args.dst).parent)
    checkpoint = read_checkpoint(args.src)
    try:
        published = slim(checkpoint, args.ema)
    except InputError as error:
        raise InputError(f'checkpoint {args.src}: {error}') from error

    # In memory: to a file, torch.save writes the file's name too, and the hash would depend on it.
    buffer = BytesIO()
    torch.save(published, buffer)
    digest = sha256(buffer.getbuffer()).hexdigest()[:8]
    name = f'{args.dst.removesuffix(".pth")}-{digest}.pth'
    with atomic_path(name) as path:
        path.write_bytes(buffer.getbuffer())

    averaged = 'ema_state_dict' in checkpoint and args.ema is not False
    layers = sum(key.split('.')[-1] == 'mean_weight' for key in published['state_dict'])
    print(
        f'{name}: {buffer.tell() / 1e6:.1f} MB, {"EMA" if averaged else "last"} weights, '
        f'{layers or "no"} SN layers'
    )
