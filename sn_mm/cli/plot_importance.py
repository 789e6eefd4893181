"""Draws the learned importance: of each layer, and averaged over each component.

Checkpoints give the figures `layers` and `components`, several of them side by side; the logs of a
training with `SwitchWeightsHook` give `course`. Each figure is written as .png and .svg.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..analysis import figures, importance
from ..checkpoints.read import read_checkpoint
from ..errors import InputError
from ..output.figures import save_figure
from ..output.files import check_folder
from .errors import check_labels, report_input_errors


def label_checkpoints(paths: Sequence[str]) -> list[str]:
    """The parts in which the paths differ."""
    parts = [Path(path).absolute().with_suffix('').parts for path in paths]
    shared = len(os.path.commonprefix(parts)) if len(parts) > 1 else len(parts[0])
    return ['/'.join(p[min(shared, len(p) - 1) :]) for p in parts]


def read_networks(args: Namespace) -> dict[str, dict[str, importance.Importance]]:
    """Importance by layer, by the label of the checkpoint."""
    networks = {}
    labels = args.labels or label_checkpoints(args.checkpoints)
    check_labels(labels, len(args.checkpoints), 'checkpoints')
    for label, path in zip(labels, args.checkpoints):
        checkpoint = read_checkpoint(path)
        try:
            network = importance.from_state_dict(
                checkpoint.get('state_dict', checkpoint), args.normalizers
            )
        except InputError as error:
            raise InputError(f'checkpoint {path}: {error}') from error
        if not network:
            raise InputError(f'checkpoint {path} holds no SN layer (no mean_weight and var_weight)')
        networks[label] = network
    return networks


def read_logs(paths: Sequence[Path]) -> dict[int, dict[str, importance.Importance]]:
    """Importance by component, by iteration. A later log replaces iterations that it repeats."""
    course: dict[int, dict[str, importance.Importance]] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f'log {path} does not exist')
    files = [f for path in paths for f in (sorted(path.rglob('scalars.json')) or [path])]
    for file in files:
        try:
            logged = importance.from_log(file.read_text())
        except (OSError, UnicodeDecodeError, InputError) as error:
            raise InputError(f'log {file} cannot be read: {error}') from error
        course = {step: v for step, v in course.items() if step < min(logged, default=step + 1)}
        course.update(logged)
    if len(course) < 2:
        raise InputError(
            f'{len(course)} entries of SwitchWeightsHook in {", ".join(map(str, files))}; a course '
            'needs two: add dict(type="SwitchWeightsHook") to custom_hooks before training'
        )
    return course


@report_input_errors
def run(args: Namespace) -> None:
    check_folder('--out', args.out)
    drawn = {}
    if args.checkpoints:
        networks = read_networks(args)
        drawn['layers'] = figures.draw_layers(networks)
        drawn['components'] = figures.draw_components(networks)
    if args.logs:
        drawn['course'] = figures.draw_course(read_logs(args.logs))
    if not drawn:
        raise InputError('nothing to draw: name a checkpoint, or --logs of a training')
    for name, figure in drawn.items():
        save_figure(figure, args.out / name)
        print(*(args.out / f'{name}.{kind}' for kind in ('png', 'svg')), sep='\n')
