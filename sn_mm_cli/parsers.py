"""The arguments of each command.

Values are kept as they are written; what needs torch, a toolbox or the data to be understood, the
command reads itself. Some choices and defaults also stand in ``sn_mm``, which is not imported here:
a test compares them.
"""

from __future__ import annotations

import sys
from argparse import (
    SUPPRESS,
    Action,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    Namespace,
)
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

_CONFIG = 'a path, or PACKAGE::PATH such as mmdet::mask_rcnn/NAME.py'


class Parser(ArgumentParser):
    """Reports a wrong argument in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n')


class GivenOnce(Action):
    """An option whose second use would replace the first."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: Any = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f'{option} is given twice, one {self.dest} is allowed')
        setattr(namespace, self.dest, values)


class RenamedOption(Action):
    """An option under its old name, which it says."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option: Any = None
    ) -> None:
        new = f'--{self.dest.replace("_", "-")}'
        print(f'{parser.prog}: {option} is called {new} since version 1.1', file=sys.stderr)
        setattr(namespace, self.dest, values)


def at_least(smallest: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number of at least ``smallest``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise ArgumentTypeError(
                f'a whole number of at least {smallest} is allowed, got {text!r}'
            )
        return int(text)

    return parse


def make_parser(name: str) -> Parser:
    """The parser of a command, a key of :data:`COMMANDS`."""
    line, add_arguments = COMMANDS[name]
    parser = Parser(prog=f'sn-mm {name}', description=line)
    add_arguments(parser)
    return parser


def _train(parser: ArgumentParser) -> None:
    add_config_arguments(parser)
    _add_processes(parser)
    _add_norm(parser)
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate to the batch size, from the config's auto_scale_lr",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; without a path, from the latest in the work dir',
    )


def _test(parser: ArgumentParser) -> None:
    add_config_arguments(parser)
    _add_processes(parser)
    _add_norm(parser)
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--out', help='where predictions go: a .pkl file, or for mmseg a folder of label maps'
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='where pictures of predictions go')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds to show each picture')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')


def _batch_average(parser: ArgumentParser) -> None:
    add_config_arguments(parser)
    _add_processes(parser)
    parser.add_argument('checkpoint', help='checkpoint file to start from')
    parser.add_argument('out', type=Path, help='checkpoint file to write')
    parser.add_argument(
        '--num-iters',
        type=at_least(1),
        default=200,
        help='mini-batches for each process (%(default)s)',
    )
    parser.add_argument('--bn', action='store_true', help='average BatchNorm statistics as well')
    parser.add_argument(
        '--seed', type=int, default=0, help='chooses the mini-batches (%(default)s)'
    )


def _compare_norms(parser: ArgumentParser) -> None:
    positive = at_least(1)
    parser.add_argument('config', nargs='?', help='a path, or PACKAGE::PATH, of mmdet or mmseg')
    parser.add_argument(
        '--norms',
        nargs='+',
        metavar='NORM',
        help="norms as --norm takes them, each in quotes (BN GN SyncBN SN 'SN sync=False' "
        "'SN normalizers=[in,ln]')",
    )
    parser.add_argument(
        '--processes', type=positive, default=2, help='number for each run (%(default)s)'
    )
    parser.add_argument(
        '--images', type=positive, nargs='+', help='numbers of images per process (1 2 4)'
    )
    parser.add_argument(
        '--seeds', type=positive, help='trainings with each norm and number of images (3)'
    )
    parser.add_argument('--out', type=Path, help='folder of the results (work_dirs/norms/CONFIG)')
    parser.add_argument('--jobs', type=positive, default=1, help='runs at a time (%(default)s)')
    parser.add_argument(
        '--base-batch-size',
        type=positive,
        help="images that the config's learning rate is for (its auto_scale_lr, else NxbM in its "
        'name, else PROCESSES times its batch_size)',
    )
    parser.add_argument('--metric', help='metric to compare (mmdet: coco/bbox_mAP, mmseg: mIoU)')
    parser.add_argument(
        '--batch-average',
        type=positive,
        default=0,
        metavar='N',
        help='test with the batch average of N mini-batches, too',
    )
    _add_extent(parser, default='existing', help='as for sn-mm train')
    parser.add_argument(
        '--retry-failed', action='store_true', help='repeat runs that ended in an error'
    )
    parser.add_argument(
        '--quick', action='store_true', help="go through all steps in minutes, with the demo's data"
    )
    _add_cfg_options(parser)


def _plot_norms(parser: ArgumentParser) -> None:
    parser.add_argument(
        'folders', nargs='+', type=Path, metavar='DIR', help='--out of sn-mm compare-norms'
    )
    parser.add_argument('--labels', nargs='+', help='titles of the panels (names of the folders)')
    parser.add_argument('--metric', help='metric to draw (box AP or mean IoU)')
    parser.add_argument(
        '--out', type=Path, default=Path('norms'), help='the figure, without .png (%(default)s)'
    )


def _plot_importance(parser: ArgumentParser) -> None:
    parser.add_argument('checkpoints', nargs='*', metavar='CHECKPOINT', help='checkpoint files')
    parser.add_argument('--out', type=Path, default=Path('importance'), help='folder (%(default)s)')
    parser.add_argument('--labels', nargs='+', help='names of the checkpoints (their file names)')
    parser.add_argument(
        '--logs',
        nargs='+',
        type=Path,
        default=[],
        metavar='LOG',
        help='logs of one training in the order in which it ran: a work dir or scalars.json files',
    )
    parser.add_argument(
        '--normalizers',
        nargs='+',
        choices=('in', 'ln', 'bn'),
        help='scopes of layers with fewer than three of them, if a checkpoint leaves them open',
    )


def _convert_checkpoint(parser: ArgumentParser) -> None:
    parser.add_argument('src', metavar='SRC', help="checkpoint of the authors' code")
    parser.add_argument('dst', metavar='DST', help='checkpoint to write')
    parser.add_argument(
        '--to',
        required=True,
        choices=('mmdet', 'mmseg', 'mmpretrain'),
        help='the toolbox that loads it',
    )


def _publish_model(parser: ArgumentParser) -> None:
    parser.add_argument('src', metavar='IN', help='checkpoint of a training')
    parser.add_argument('dst', metavar='OUT', help='name to write, to which -SHA is added')
    parser.add_argument(
        '--ema',
        action=BooleanOptionalAction,
        help="publish EMAHook's averaged weights, or with --no-ema those before averaging "
        '(default: the averaged ones where the checkpoint has them)',
    )


def _export_onnx(parser: ArgumentParser) -> None:
    parser.add_argument('config', help=_CONFIG)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', type=Path, help='ONNX file to write')
    parser.add_argument(
        '--shape',
        type=at_least(1),
        nargs=2,
        default=(256, 320),
        metavar=('H', 'W'),
        help='image size to record and check with; the file takes any (256 320)',
    )
    parser.add_argument(
        '--opset',
        type=int,
        default=17,
        choices=range(17, 21),
        help="version of ONNX's operators (%(default)s)",
    )
    _add_cfg_options(parser)
    parser.set_defaults(launcher='none', work_dir=None)


def _make_scenes(parser: ArgumentParser) -> None:
    layouts = ('coco', 'cityscapes', 'ade20k')
    parser.add_argument('out_root', type=Path, help='folder that gets coco/, cityscapes/, ade/')
    parser.add_argument(
        '--layout', nargs='+', choices=layouts, default=list(layouts), help='the sets to write'
    )
    parser.add_argument(
        '--train', type=at_least(1), default=600, help='training scenes (%(default)s)'
    )
    parser.add_argument(
        '--val', type=at_least(1), default=100, help='validation scenes (%(default)s)'
    )
    parser.add_argument(
        '--size',
        type=at_least(1),
        nargs='+',
        default=[160, 160],
        help='side of a scene in pixels, or height and width (%(default)s)',
    )
    parser.add_argument(
        '--seed', type=at_least(0), default=0, help='seed of every random choice (%(default)s)'
    )
    parser.add_argument(
        '--categories',
        choices=('digits', 'digit', 'coco'),
        default='digits',
        help="COCO categories: ten named 0 to 9, one for all digits, or COCO's 80 with the digits "
        'under the first ten (%(default)s)',
    )
    parser.add_argument(
        '--digits',
        type=at_least(1),
        nargs=2,
        metavar=('LOW', 'HIGH'),
        default=(2, 5),
        help='number of digits in a scene (%(default)s)',
    )
    parser.add_argument(
        '--digit-size',
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        default=(0.19, 0.40),
        help="length of a digit as a share of the scene's shorter side (%(default)s)",
    )
    parser.add_argument(
        '--variety',
        choices=('low', 'medium', 'high'),
        default='medium',
        help='how much scenes differ from one another in light, contrast and kinds of ground '
        '(%(default)s)',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace sets that this command made otherwise'
    )


def _make_nuclei(parser: ArgumentParser) -> None:
    parser.add_argument('out_root', type=Path, help='folder that gets coco/')
    parser.add_argument(
        '--train', type=at_least(1), default=800, help='training images (%(default)s)'
    )
    parser.add_argument(
        '--seed', type=at_least(0), default=0, help='seed of the places of the images (%(default)s)'
    )


def _benchmark_layer(parser: ArgumentParser) -> None:
    dtypes, formats = ('float32', 'float16', 'bfloat16'), ('contiguous', 'channels_last')
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=dtypes,
        default=['float32'],
        help='dtypes of the inputs (float32)',
    )
    parser.add_argument(
        '--format',
        nargs='+',
        choices=formats,
        default=formats,
        help='memory formats of the inputs (both)',
    )
    parser.add_argument(
        '--compile', action='store_true', help='BatchNorm and SN under torch.compile, too'
    )
    parser.add_argument(
        '--filter',
        default='',
        metavar='REGEX',
        help="only inputs whose name matches, as 'R50-FPN 2x64x'",
    )
    _add_measurement(parser, 'layer-DEVICE')


def _benchmark_model(parser: ArgumentParser) -> None:
    parser.add_argument('config', help=_CONFIG)
    parser.add_argument(
        '--size', type=at_least(1), default=256, help='side of the images (%(default)s)'
    )
    parser.add_argument(
        '--format',
        choices=('contiguous', 'channels_last'),
        default='contiguous',
        help='memory format of the model (%(default)s)',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='with own norms, GN and SN, and each with backbone and neck under torch.compile',
    )
    parser.add_argument(
        '--onnx',
        action='store_true',
        help='inference of one image in onnxruntime and eager, with own norms, GN and SN',
    )
    _add_norm(parser)
    _add_measurement(parser, 'CONFIG-DEVICE')


def add_config_arguments(parser: ArgumentParser) -> None:
    """What training and testing have in common, named as OpenMMLab names it."""
    parser.add_argument('config', help=_CONFIG)
    parser.add_argument('--work-dir', help='where logs and results go (work_dirs/<config name>)')
    _add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started this process as one of several',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=SUPPRESS)


def _add_processes(parser: ArgumentParser) -> None:
    parser.add_argument(
        '--processes',
        dest='start_processes',
        type=at_least(1),
        metavar='N',
        help='start as N processes on this machine, on the CPU where there is no GPU; PORT in the '
        'environment sets the port, NNODES, NODE_RANK and MASTER_ADDR several machines',
    )


def _add_cfg_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help='override settings of the config, for example train_cfg.max_epochs=1 or key="[a,b]"',
    )


def _add_norm(parser: ArgumentParser) -> None:
    parser.add_argument(
        '--norm',
        nargs='+',
        action=GivenOnce,
        metavar=('TYPE', 'KEY=VALUE'),
        help='replace the norms of the config by SN, with arguments of the layer such as '
        'normalizers=[in,ln] sync=False; or by SSN (Sparse SN), BN, SyncBN, GN num_groups=32 or '
        'IN. importance_lr_mult=30 lets the importance of SN learn at 30 times the learning rate '
        'of the other parameters (default: a multiple that follows from the length of the '
        'training)',
    )
    _add_extent(
        parser,
        help='existing: every norm (the default); backbone: those of the backbone; all: every '
        'norm, and neck, box head and mask head get SN where they have none',
    )


def _add_extent(parser: ArgumentParser, **options: Any) -> None:
    """Adds ``--norm-extent``, and its name in version 1.0, which works until version 1.2."""
    extents = ('existing', 'backbone', 'all')
    parser.add_argument('--norm-extent', choices=extents, **options)
    parser.add_argument(
        '--norm-scope',
        action=RenamedOption,
        dest='norm_extent',
        choices=extents,
        default=SUPPRESS,
        help=SUPPRESS,
    )


def _add_measurement(parser: ArgumentParser, name: str) -> None:
    parser.add_argument('--device', help='cpu, or cuda with an optional number (a GPU, if any)')
    parser.add_argument(
        '--threads', type=at_least(1), help="threads of PyTorch's kernels (as PyTorch has it)"
    )
    parser.add_argument(
        '--repeats',
        type=at_least(1),
        default=15,
        help='timings of each layer or model (%(default)s)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE.json',
        help=f'where the figures go (work_dirs/benchmarks/{name}.json)',
    )


COMMANDS: dict[str, tuple[str, Callable[[ArgumentParser], None]]] = {
    'train': ('Train a model.', _train),
    'test': ('Test (and evaluate) a model.', _test),
    'batch-average': (
        "Replace a checkpoint's moving average by a batch average.",
        _batch_average,
    ),
    'compare-norms': (
        'Train with one norm after the other, and say which one pays.',
        _compare_norms,
    ),
    'plot-norms': ('Draw comparisons of norms side by side.', _plot_norms),
    'plot-importance': ('Draw the importance that SN has learned.', _plot_importance),
    'convert-checkpoint': ("Convert the authors' ResNets with SN.", _convert_checkpoint),
    'publish-model': ('Write a slim checkpoint.', _publish_model),
    'export-onnx': ('Write a trained model as ONNX.', _export_onnx),
    'make-scenes': ('Make small data sets from digits and photographs.', _make_scenes),
    'make-nuclei': ('Make an instance-segmentation set from a micrograph.', _make_nuclei),
    'benchmark-layer': ('Measure SN layers beside other norms.', _benchmark_layer),
    'benchmark-model': (
        "Measure a model's training step or inference with SN beside its own norms.",
        _benchmark_model,
    ),
}
"""By name, what it does and the function that adds its arguments."""
