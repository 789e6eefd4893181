"""Launches find the compiled kernel that Triton itself would take, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip('triton', '3.5', 'the hook that tells keys came with Triton 3.5')

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def told(*arguments: str) -> dict[str, Any]:
    """What triton_variants.py prints, in a process without Triton's interpreter."""
    env = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    command = [sys.executable, str(Path(__file__).with_name('triton_variants.py')), *arguments]
    env['PYTHONPATH'] = str(ROOT)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_launches_of_a_kind_have_one_key_of_triton():
    """Over random dtypes, formats, addresses, shapes, scopes, parameters and statistics."""
    result = told('keys')
    assert result['keys'] > 500
    assert result['kinds of several keys'] == []
    assert result['kinds'] < 1.5 * result['keys']  # few are asked for twice


def test_a_second_step_starts_the_same_kernels_directly():
    """A batch at an address that 16 does not divide has its own kernel, as has a wide number."""
    result = told('starts', 'sm_90')
    assert len(result['started']) == 9 and result['equal']
    assert result['own way'] == []
    for by in ('alignment', 'width'):
        one, other, *again = result[f'variants by {by}']
        assert one != other and again == [one, other]


def test_amd_kernels_go_by_triton_itself():
    """They are compiled for the size of a tensor's memory as well."""
    result = told('starts', 'gfx942')
    assert sorted(result['own way']) == sorted(result['started'])
