"""The ways to give bad input: an expression, a command in this process, a shell command."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import mmengine
import torch
from torch import distributed, nn

import sn_mm
import sn_mm.analysis.importance
import sn_mm.checkpoints.authors
import sn_mm.checkpoints.slim
import sn_mm.engine.hooks
import sn_mm.functional
import sn_mm.model.batch_average
import sn_mm.switch
import sn_mm_cli.main

TOOLS = Path(__file__).parents[2] / 'tools'


def give(bad: str) -> tuple[int, str]:
    """Gives bad input as a user does.

    Args:
        bad: A Python expression or a command line.

    Returns:
        The exit status, not 0 for an expression that raises; the error's line.
    """
    if re.match(r'bash |SN_MM_', bad):  # variables of that name are read at import
        return shell(bad)
    if re.match(r'([A-Z_]+=\S* )*(sn-mm|python) ', bad):
        return command(bad)
    return evaluate(bad)


def evaluate(expression: str) -> tuple[int, str]:
    """Evaluates an expression; the line is the error's class and message."""
    names = {
        **vars(sn_mm), **vars(sn_mm.functional), **vars(sn_mm.model.batch_average),
        **vars(sn_mm.switch), **vars(sn_mm.engine.hooks), **vars(sn_mm.analysis.importance),
        **vars(sn_mm.checkpoints.authors), **vars(sn_mm.checkpoints.slim),
        'torch': torch, 'nn': nn, 'Config': mmengine.Config,
        'x': torch.randn(2, 4, 3, 3), 'w': torch.ones(3), 'layer': sn_mm.SwitchNorm2d(4),
        'net': nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
    }  # fmt: skip
    try:
        eval(expression, names)
    except (ValueError, TypeError) as error:
        return 1, f'{type(error).__name__}: {error}'
    return 0, 'accepted'


@contextlib.contextmanager
def _command(words: list[str], variables: dict[str, str]) -> Iterator[None]:
    """The process as a shell starts it for a command; ``sys.path`` with the script's folder."""
    env = {'CUDA_VISIBLE_DEVICES': '-1', **variables}
    with (
        patch.object(sys, 'argv', words),
        patch.object(sys, 'path', [str(TOOLS), *sys.path]),
        patch.dict(os.environ, env),
    ):
        try:
            yield
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()


def command(line: str) -> tuple[int, str]:
    """Runs ``sn-mm ...`` or ``python tools/...`` in this process.

    Returns:
        Its exit status and the last line on stderr.
    """
    words = shlex.split(line)
    variables = {}
    while '=' in words[0]:
        name, _, variables[name] = words.pop(0).partition('=')
    said, status = io.StringIO(), 0
    python = words[0] == 'python'
    if python:
        words[:2] = [str(TOOLS.parent / words[1])]
    with _command(words, variables), contextlib.redirect_stderr(said):
        try:
            if python:
                runpy.run_path(words[0], run_name='__main__')
            else:
                sn_mm_cli.main.main()
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=said)
            status = stop.code if isinstance(stop.code, int) else 1
    return status, (said.getvalue().splitlines() or [''])[-1]


def shell(line: str) -> tuple[int, str]:
    """Runs a line in bash at the root of the repository; as :func:`command` otherwise."""
    folder = os.path.dirname(sys.executable)
    path = os.pathsep.join([folder, os.environ['PATH']])
    env = {**os.environ, 'PATH': path, 'PYTHON': sys.executable, 'PYTHONPATH': str(TOOLS.parent)}
    done = subprocess.run(
        ['bash', '-c', line], cwd=TOOLS.parent, env=env, capture_output=True, text=True, timeout=120
    )
    return done.returncode, (done.stderr.splitlines() or [''])[-1]
