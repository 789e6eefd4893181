"""Makes small instance- and semantic-segmentation sets from real pixels, in the real layouts.

It writes `coco`, `cityscapes` and `ade` into a folder such as `data`, where the ready-made dataset
configs look for them. Each scene shows handwritten digits over kinds of ground; all layouts hold
the same scenes. Instances are the digits, in ten classes; semantics are the kinds of ground, and
all digits as one class (`sn_mm/scenes/layouts.py` lists them). A set appears under its name only
when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import track

from ..errors import InputError
from ..scenes.compose import RECIPE, SceneOptions, make_scene
from ..scenes.layouts import LAYOUTS
from ..scenes.sources import SPLITS, Sources
from .errors import report_input_errors

RECORD = 'scenes.json'


def settings_of(args: Namespace, layout: str) -> dict[str, Any]:
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
        InputError: Something else exists at ``target``, and may not be replaced.
    """
    if not os.path.lexists(target):
        return False
    try:
        record = {'variety': 'medium', **json.loads((target / RECORD).read_text())}
        differing = [key for key in settings if record[key] != settings[key]]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f'{target} exists and was not made by this command: move it, or choose another folder'
        ) from None
    if differing and not force:
        changes = ', '.join(f'{key} {record[key]} instead of {settings[key]}' for key in differing)
        raise InputError(f'{target} holds a set with {changes}: --force replaces it')
    return not differing


def write_sets(root: Path, names: list[str], args: Namespace) -> None:
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


def options_of(args: Namespace) -> SceneOptions:
    """Size and content of the scenes, as the command line asks for them."""
    if len(args.size) > 2:
        raise InputError(f'--size: one or two numbers are allowed, got {len(args.size)}')
    return SceneOptions(
        size=(args.size[0], args.size[-1]),
        digits=tuple(args.digits),
        digit_size=tuple(args.digit_size),
        variety=args.variety,
    )


@report_input_errors
def run(args: Namespace) -> None:
    args.options = options_of(args)
    try:
        make_sets(args)
    except OSError as error:
        raise InputError(f'cannot write into {args.out_root}: {error.strerror or error}') from error
    except KeyboardInterrupt:
        print('make-scenes: interrupted, only the sets named above are written', file=sys.stderr)
        sys.exit(130)


def make_sets(args: Namespace) -> None:
    """Makes the sets that are not there yet."""
    root: Path = args.out_root
    root.mkdir(parents=True, exist_ok=True)
    wanted = []
    for name in dict.fromkeys(args.layout):
        target = root / LAYOUTS[name].folder
        if is_made(target, settings_of(args, name), args.force):
            print(f'{target}: already there with these settings')
        else:
            wanted.append(name)
        for work in ('partial', 'replaced'):  # left by an interrupted run
            for left in root.glob(f'.{target.name}.{work}-*'):
                shutil.rmtree(left)
    if wanted:
        write_sets(root, wanted, args)
