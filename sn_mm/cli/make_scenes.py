"""Makes small instance- and semantic-segmentation sets from real pixels, in the real layouts.

    python tools/make_scenes.py data --train 600 --val 100

writes `data/coco`, `data/cityscapes` and `data/ade`, where the ready-made dataset configs look for
them. Each scene shows handwritten digits over kinds of ground; all layouts hold the same scenes.
Instances are the digits, in ten classes; semantics are the kinds of ground, and all digits as one
class (`sn_mm/scenes/layouts.py` lists them). A set appears under its name only when it is whole.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from rich.progress import track

from ..scenes.compose import RECIPE, VARIETIES, SceneOptions, make_scene
from ..scenes.layouts import CATEGORY_SETS, LAYOUTS
from ..scenes.sources import SPLITS, SourceError, Sources

RECORD = 'scenes.json'


class SetError(Exception):
    """Something else exists where a set is to be written."""


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n')


def at_least(smallest: int) -> Callable[[str], int]:
    """Type of an argument that is a whole number of at least `smallest`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(
                f'{text!r} given, a whole number of at least {smallest} is allowed'
            )
        return int(text)

    return parse


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; `options` of the result is a :class:`SceneOptions`."""
    defaults = SceneOptions()
    parser = Parser(
        description='Makes small segmentation sets from MNIST digits and photographs.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('out_root', type=Path, help='folder that gets coco/, cityscapes/, ade/')
    parser.add_argument(
        '--layout', nargs='+', choices=LAYOUTS, default=list(LAYOUTS), help='the sets to write'
    )
    parser.add_argument('--train', type=at_least(1), default=600, help='number of training scenes')
    parser.add_argument('--val', type=at_least(1), default=100, help='number of validation scenes')
    parser.add_argument(
        '--size',
        type=at_least(1),
        nargs='+',
        default=list(defaults.size),
        help='side of a scene in pixels, or height and width',
    )
    parser.add_argument('--seed', type=at_least(0), default=0, help='seed of every random choice')
    parser.add_argument(
        '--categories',
        choices=CATEGORY_SETS,
        default='digits',
        help="COCO categories: ten named 0 to 9, one for all digits, or COCO's 80 with the digits "
        'under the first ten',
    )
    parser.add_argument(
        '--digits',
        type=at_least(1),
        nargs=2,
        metavar=('LOW', 'HIGH'),
        default=defaults.digits,
        help='number of digits in a scene',
    )
    parser.add_argument(
        '--digit-size',
        type=float,
        nargs=2,
        metavar=('LOW', 'HIGH'),
        default=defaults.digit_size,
        help="length of a digit as a share of the scene's shorter side",
    )
    parser.add_argument(
        '--variety',
        choices=list(VARIETIES),
        default=defaults.variety,
        help='how much scenes differ from one another in light, contrast and kinds of ground',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace sets that this command made otherwise'
    )
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error(f'argument --size: {len(args.size)} numbers given, one or two are allowed')
    try:
        args.options = SceneOptions(
            size=(args.size[0], args.size[-1]),
            digits=tuple(args.digits),
            digit_size=tuple(args.digit_size),
            variety=args.variety,
        )
    except ValueError as error:
        parser.error(str(error))
    return args


def settings_of(args: argparse.Namespace, layout: str) -> dict[str, Any]:
    """Everything that a set of one layout depends on, as its record file holds it."""
    settings = {
        'recipe': RECIPE,
        'layout': layout,
        'train': args.train,
        'val': args.val,
        'seed': args.seed,
        **asdict(args.options),
    }
    if layout == 'coco':
        settings['categories'] = args.categories
    return json.loads(json.dumps(settings))


def is_made(target: Path, settings: dict[str, Any], force: bool) -> bool:
    """Whether a set with the wanted settings exists already.

    Raises:
        SetError: Something else exists at ``target``, and may not be replaced.
    """
    if not os.path.lexists(target):
        return False
    try:
        record = {'variety': 'medium', **json.loads((target / RECORD).read_text())}
        differing = [key for key in settings if record[key] != settings[key]]
    except (OSError, ValueError, KeyError, TypeError):
        raise SetError(
            f'{target} exists and was not made by this command: move it, or choose another folder'
        ) from None
    if differing and not force:
        changes = ', '.join(f'{key} {record[key]} instead of {settings[key]}' for key in differing)
        raise SetError(f'{target} holds a set with {changes}: --force replaces it')
    return not differing


def write_sets(root: Path, names: list[str], args: argparse.Namespace) -> None:
    """Writes the same scenes in several layouts to temporary folders, then renames these.

    Args:
        root: The data root; it exists.
        names: The layouts to write, keys of ``LAYOUTS``.
        args: The command line.
    """
    homes = {name: root / f'.{LAYOUTS[name].folder}.partial-{os.getpid()}' for name in names}
    try:
        layouts = []
        for name, home in homes.items():
            home.mkdir()
            extra = {'category_set': args.categories} if name == 'coco' else {}
            layouts.append(LAYOUTS[name](home, **extra))
        for split, count in zip(SPLITS, (args.train, args.val)):
            sources = Sources(split)
            for index in track(range(count), description=f'{count} {split} scenes'):
                scene = make_scene(sources, args.options, args.seed, split, index)
                for layout in layouts:
                    layout.add(scene, split, index)
        for layout in layouts:
            layout.finish()
        for name, home in homes.items():
            (home / RECORD).write_text(json.dumps(settings_of(args, name), indent=2) + '\n')
        for name, home in homes.items():
            target = root / LAYOUTS[name].folder
            replaced = root / f'.{target.name}.replaced-{os.getpid()}'
            if os.path.lexists(target):
                target.rename(replaced)
            home.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
            print(f'{target}: {args.train} train and {args.val} val scenes')
    finally:
        for home in homes.values():
            shutil.rmtree(home, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = parse_args(argv)
    root: Path = args.out_root
    try:
        root.mkdir(parents=True, exist_ok=True)
        wanted = []
        for name in dict.fromkeys(args.layout):
            target = root / LAYOUTS[name].folder
            if is_made(target, settings_of(args, name), args.force):
                print(f'{target}: already there with these settings')
            else:
                wanted.append(name)
            for work in ('partial', 'replaced'):  # left by an interrupted run
                for leftover in root.glob(f'.{target.name}.{work}-*'):
                    shutil.rmtree(leftover)
        if wanted:
            write_sets(root, wanted, args)
    except OSError as error:
        reason = error.strerror or error
        print(f'make_scenes.py: error: cannot write into {root}: {reason}', file=sys.stderr)
        return 1
    except (SetError, SourceError) as error:
        print(f'make_scenes.py: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('make_scenes.py: interrupted, only the sets named above are written', file=sys.stderr)
        return 130
    return 0
