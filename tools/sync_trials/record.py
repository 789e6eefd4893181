"""The record of many trials: how many agreed, and how many of each kind of difficulty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from sn_mm.cli.machine import describe

from .run import TOLERANCE
from .trial import draw

ENDS = ('agreed', 'differed', 'failed', 'hung')


class Verdict(NamedTuple):
    """How the trial of a seed ended, one of :data:`ENDS`, and why, a line for each reason."""

    seed: int
    ended: str
    lines: tuple[str, ...]


def summarise(verdicts: Sequence[Verdict]) -> str:
    """One line: how many trials ended in each way."""
    counts = Counter(verdict.ended for verdict in verdicts)
    return f'{len(verdicts):,} trials: ' + ', '.join(f'{counts[end]:,} {end}' for end in ENDS)


def write_record(
    file: Path, verdicts: Sequence[Verdict], arguments: Sequence[str], seconds: float
) -> None:
    """Writes the record as a page of Markdown.

    Args:
        file: The page.
        verdicts: Of all trials.
        arguments: Of the command.
        seconds: That the trials took.
    """
    machine = describe(torch.device('cpu'))
    rows: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        for feature in draw(verdict.seed).features():
            rows.setdefault(feature, Counter())[verdict.ended] += 1
    lines = [
        '# Random trials of synchronisation',
        '',
        f'**{summarise(verdicts)}.**',
        '',
        'Each trial trains a small network for two to four steps on real gloo processes. It',
        'draws from its seed two to four ranks; one to three blocks of a convolution and SN, and',
        'a head on RoIs; the channels, scopes and `sync` of each layer; for each step and rank',
        'the number of images (0 included), their height and width, whether they need gradients,',
        'and the number of RoIs; and what the table below lists. A single process that sees the',
        'union of the batches is the judge: outputs, gradients of images and parameters, and',
        'running statistics of every rank agree with its own in float64',
        f'to {TOLERANCE["float64"]:g} of the largest value where the ranks compute in float64, to '
        f'{TOLERANCE["float32"]:g} in',
        'float32. A trial that takes longer than the limit has hung. The command wrote this page:',
        '',
        '```shell',
        f'python tools/check_sync.py {" ".join(arguments)}',
        'python tools/check_sync.py --seed 17      # one of them again',
        '```',
        '',
        f'{machine["date"]}, {machine["cpu"]}, {machine["cores"]} cores, torch {machine["torch"]}, '
        f'sn_mm {machine["sn_mm"]}, {seconds / 60:.0f} minutes.',
        '',
        f'| trials with | {" | ".join(ENDS)} |',
        f'|---|{"---|" * len(ENDS)}',
    ]
    for feature in sorted(rows):
        cells = ' | '.join(str(rows[feature][end]) for end in ENDS)
        lines.append(f'| {feature} | {cells} |')
    others = [verdict for verdict in verdicts if verdict.ended != 'agreed']
    if others:
        seeds = ', '.join(f'{verdict.seed} ({verdict.ended})' for verdict in others)
        lines += ['', f'Seeds that did not agree: {seeds}.']
    file.write_text('\n'.join(lines) + '\n', encoding='utf-8')
