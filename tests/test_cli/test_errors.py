"""One line for bad input, a traceback for everything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sn_mm
from sn_mm.cli import errors
from sn_mm.cli.errors import report_input_errors
from sn_mm.errors import InputError


def _end(action, capsys):
    with pytest.raises(SystemExit) as stop:
        report_input_errors(action)()
    return stop.value.code, capsys.readouterr().err


def refuse():
    raise InputError('given 1,\n  allowed 2')


def test_bad_input_is_one_line_and_a_non_zero_exit(capsys):
    code, line = _end(refuse, capsys)
    assert code == 2
    assert line.endswith('error: given 1, allowed 2\n') and line.count('\n') == 1


@pytest.mark.parametrize('name', ['LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK'])
@pytest.mark.parametrize('rank', [0, 1])
def test_the_other_ranks_leave_local_rank_0_the_time_to_speak(name, rank, capsys, monkeypatch):
    waited = []
    monkeypatch.setattr(errors.time, 'sleep', waited.append)
    monkeypatch.setenv(name, str(rank))
    assert _end(refuse, capsys)[0] == 2
    assert waited == [errors._GRACE] * rank


def test_what_a_layer_refuses_is_one_line(capsys):
    code, line = _end(lambda: sn_mm.SwitchNorm2d(4, init_importance='foo'), capsys)
    assert code == 2
    assert 'foo' in line and line.count('\n') == 1


class Child(InputError):
    pass


@pytest.mark.parametrize('kind', [InputError, Child])
def test_the_class_survives_a_registry_that_raises_it_anew(kind, capsys):
    """MMEngine's registries did, up to 0.10.4: ``raise type(e)(f'class ... {e}')``."""

    def build():
        try:
            raise kind('given 1, allowed 2')
        except Exception as error:
            raise type(error)(f'class Net: {error}') from None

    assert _end(build, capsys)[0] == 2


@pytest.mark.parametrize('error', [ValueError, TypeError])
def test_a_bug_inside_the_package_keeps_its_traceback(error, monkeypatch):
    def fail(*args):
        raise error('bug')

    monkeypatch.setattr(sn_mm.SwitchNorm, '_initial_logits', staticmethod(fail))
    with pytest.raises(error, match='bug'):
        report_input_errors(lambda: sn_mm.SwitchNorm2d(4))()


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match='invalid literal'):
        report_input_errors(lambda: int('x'))()


REFUSING_RANK = """
import atexit, os
import torch.distributed as dist
from sn_mm.cli.errors import report_input_errors
from sn_mm.errors import InputError

@report_input_errors
def main():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    atexit.register(os.abort)  # as a thread of gloo does, once in many runs
    raise InputError('the line')

main()
"""


def test_a_rank_keeps_its_exit_status_where_the_shutdown_would_abort():
    command = [sys.executable, '-c', REFUSING_RANK]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.endswith('error: the line\n'), ended.stderr
