"""Bad input of every kind ends in the line that docs/records/bad_input.md has, and runs no code."""

from __future__ import annotations

import doctest
import pickle
import re
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from test_bad_input.files import MARKER, write_files, write_models
from test_bad_input.page import CASES, PAGE, render
from test_bad_input.ways import give

QUICK, SLOW = (
    [case for cases in CASES['sections'].values() for case in cases if case.get('slow') is slow]
    for slow in (None, True)
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('bad')
    write_files(path)
    return path


@pytest.fixture(scope='module')
def models(folder: Path) -> Path:
    write_models(folder)
    return folder


def check(case: dict[str, str]) -> None:
    before = set(Path().rglob('*'))
    status, said = give(case['given'])
    wanted, got = case['line'] + '\n', said.strip() + '\n'
    assert doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS), said
    assert status == 2 if re.search(r'\bsn-mm ', case['given']) else status > 0
    assert not Path(MARKER).exists(), 'code in a pickle ran'
    # Only what is refused by the model or by its data has a work dir, with its log.
    written = {path.parts[0] for path in set(Path().rglob('*')) - before}
    assert written <= {'work_dirs', '__pycache__'} and (case.get('slow') or not written)


@pytest.mark.parametrize('case', QUICK, ids=[case['given'] for case in QUICK])
def test_bad_input_gets_its_line(
    case: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ' export-onnx ' in case['given']:
        pytest.importorskip('onnx')
    monkeypatch.chdir(folder)
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize('case', SLOW, ids=[case['given'] for case in SLOW])
def test_bad_input_met_late_gets_its_line(
    case: dict[str, str], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ' export-onnx ' in case['given']:
        pytest.importorskip('onnx')
    monkeypatch.chdir(models)
    check(case)


def test_the_malicious_pickle_runs_where_nothing_refuses_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads((folder / 'evil.pkl').read_bytes())
    assert Path(MARKER).exists()


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text('utf-8') == render(), 'run python tests/test_bad_input/page.py'
    assert len(QUICK + SLOW) > 200
