"""Writes a slim checkpoint to give away: weights and meta, with the SHA-256's start in the name.

    python tools/publish_model.py work_dirs/NAME/epoch_12.pth mask-rcnn_r50-sn_fpn.pth

writes mask-rcnn_r50-sn_fpn-1a2b3c4d.pth. The same weights and meta always give the same file.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from hashlib import sha256
from io import BytesIO

import torch

from sn_mm.checkpoints.slim import slim
from sn_mm.cli.checkpoint import read_checkpoint
from sn_mm.cli.errors import report_input_errors
from sn_mm.cli.files import atomic_path
from sn_mm.errors import InputError


def parse_args() -> Namespace:
    parser = ArgumentParser(description='Write a slim checkpoint.')
    parser.add_argument('src', metavar='IN', help='checkpoint of a training')
    parser.add_argument('dst', metavar='OUT', help='name to write, to which -SHA is added')
    parser.add_argument(
        '--ema',
        action=BooleanOptionalAction,
        help="publish EMAHook's averaged weights, or with --no-ema those before averaging "
        '(default: the averaged ones where the checkpoint has them)',
    )
    return parser.parse_args()


@report_input_errors
def main() -> None:
    args = parse_args()
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


if __name__ == '__main__':
    main()
