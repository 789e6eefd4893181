"""``sn-mm``: its commands, their help, and its processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sn_mm.checkpoints.authors import TOOLBOXES
from sn_mm.equations import SCOPES
from sn_mm.version import __version__
from sn_mm_cli.main import main
from sn_mm_cli.parsers import COMMANDS, make_parser

ROOT = Path(__file__).parents[2]

# What the parsers refuse to see imported: each takes longer than help may.
HEAVY = {'torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'numpy', 'cv2', 'matplotlib', 'rich'}


def said(capsys: pytest.CaptureFixture, *words: str) -> str:
    main(words)
    return capsys.readouterr().out


@pytest.mark.parametrize('words', [(), ('help',), ('--help',)])
def test_the_commands_are_listed_a_line_each(capsys, words):
    first, empty, *lines = said(capsys, *words).splitlines()
    assert first.startswith('usage: sn-mm COMMAND') and not empty
    assert [line.split()[0] for line in lines] == list(COMMANDS)


def test_the_version_is_printed(capsys):
    assert said(capsys, '--version').strip() == __version__


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_a_command_is_asked_for_in_two_ways(capsys, name):
    helps = []
    for words in ([name, '--help'], ['help', name]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert not stop.value.code
        helps.append(capsys.readouterr().out)
    assert helps[0] == helps[1] and helps[0].startswith(f'usage: sn-mm {name} ')
    assert COMMANDS[name][0].split()[0] in helps[0]


def test_help_imports_nothing_that_takes_long():
    code = (
        'import sys; from sn_mm_cli.parsers import COMMANDS, make_parser\n'
        'import sn_mm_cli.main\n'
        'for name in COMMANDS: make_parser(name).format_help()\n'
        f'print(*({HEAVY} & set(sys.modules)))'
    )
    command = [sys.executable, '-c', code]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def choices(command: str, option: str) -> Any:
    (action,) = (a for a in make_parser(command)._actions if option in a.option_strings)
    return action.choices


def test_the_parsers_know_the_choices_and_defaults_of_the_package():
    pytest.importorskip('mmengine')
    from sn_mm.switch import EXTENTS

    assert choices('plot-importance', '--normalizers') == SCOPES
    assert choices('convert-checkpoint', '--to') == TOOLBOXES
    for command in ('train', 'compare-norms'):
        for option in ('--norm-extent', '--norm-scope'):
            assert choices(command, option) == EXTENTS


def test_the_parsers_know_the_choices_and_defaults_of_scenes():
    pytest.importorskip('cv2')
    from sn_mm.scenes.compose import VARIETIES, SceneOptions
    from sn_mm.scenes.layouts import LAYOUTS

    assert choices('make-scenes', '--variety') == tuple(VARIETIES)
    assert choices('make-scenes', '--layout') == tuple(LAYOUTS)
    args, options = make_parser('make-scenes').parse_args(['out']), SceneOptions()
    assert tuple(args.size) == options.size and args.variety == options.variety
    assert (args.digits, args.digit_size) == (options.digits, options.digit_size)


def test_an_unknown_command_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['trian', 'a.py'])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line == f"sn-mm: error: COMMAND must be one of {', '.join(COMMANDS)}, got 'trian'"


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, 'sn_mm.cli.train', raising=False)
    monkeypatch.setitem(sys.modules, 'mmengine', None)
    monkeypatch.setitem(sys.modules, 'mmengine.config', None)
    with pytest.raises(SystemExit) as stop:
        main(['train', 'a.py'])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == 'sn-mm train: error: mmengine is not installed: pip install mmengine'
