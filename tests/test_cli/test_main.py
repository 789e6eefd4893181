"""``sn-mm`` and the scripts of tools/ are the same commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sn_mm.cli import main as sn_mm_command
from sn_mm.cli.main import COMMANDS, main

pytest.importorskip('matplotlib')

ROOT = Path(__file__).parents[2]
SCRIPTS = {name: f'{name.replace("-", "_")}.py' for name in COMMANDS}

# Asks every script and every command for help, in one process: what they import is imported once.
DRIVER = """
import contextlib, io, json, runpy, sys
from sn_mm.cli.main import main

def ask(run, *argv):
    sys.argv = [*argv, '--help']
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            run()
        except SystemExit as stop:
            assert not stop.code
    return out.getvalue()

tools, scripts = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps({
    name: [
        ask(lambda: runpy.run_path(f'{tools}/{script}', run_name='__main__'), f'{tools}/{script}'),
        ask(main, '/usr/bin/sn-mm', name),
    ]
    for name, script in scripts.items()
}))
"""


@pytest.mark.slow
def test_each_script_and_its_command_show_the_same_help_under_their_own_names():
    command = [sys.executable, '-c', DRIVER, ROOT / 'tools', json.dumps(SCRIPTS)]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore', 'COLUMNS': '1000'}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, (script, command) in json.loads(done.stdout.splitlines()[-1]).items():
        assert script.startswith(f'usage: {SCRIPTS[name]} ') and COMMANDS[name] in script
        assert command == script.replace(f'usage: {SCRIPTS[name]} ', f'usage: sn-mm {name} ')


def test_help_lists_the_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['/usr/bin/sn-mm', '--help'])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('usage: sn-mm COMMAND')
    assert [line.split()[0] for line in lines[3:]] == list(COMMANDS)


@pytest.mark.parametrize(('argv', 'given'), [([], "''"), (['trian', 'a.py'], "'trian'")])
def test_an_unknown_command_is_one_line(argv, given, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['/usr/bin/sn-mm', *argv])
    with pytest.raises(SystemExit) as stop:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line == f'sn-mm: error: COMMAND must be one of {", ".join(COMMANDS)}, got {given}'


def test_without_mmengine_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sn_mm_command, 'find_spec', lambda name: None)
    monkeypatch.setattr(sys, 'argv', ['/usr/bin/sn-mm', 'train', 'a.py'])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith('sn-mm: error: the commands need MMEngine')


def test_bad_input_to_a_command_is_said_in_its_name(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['/usr/bin/sn-mm', 'publish-model', 'none.pth', 'out'])
    with pytest.raises(SystemExit):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('sn-mm publish-model: error: checkpoint none.pth does not exist')
