"""What stands in two files of the repository stands in both."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from sn_mm.version import __version__

ROOT = Path(__file__).parents[1]


def test_pre_commit_and_the_workflow_run_the_checks_of_ci() -> None:
    ci = re.findall(r'^"\$python" (-m .+)$', (ROOT / '.ci/run').read_text(), re.M)
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['hooks']
    assert [hook['entry'] for hook in hooks] == [f'python {check}' for check in ci]

    workflow = yaml.safe_load((ROOT / '.github/workflows/tests.yml').read_text())
    commands = [step['run'] for step in workflow['jobs']['tests']['steps'] if 'run' in step]
    assert [c for c in commands if ' -m ' in c] == [f'.venv/bin/python {check}' for check in ci]
    tools = re.findall(r'^bash .+', (ROOT / '.ci/run').read_text(), re.M)
    assert [c for c in commands if ' -m ' not in c] == ['bash tools/setup_env.sh', *tools]


def test_the_citation_and_the_changelog_have_the_version_of_the_package() -> None:
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == __version__
    latest = re.search(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    assert latest is not None and latest[1] == __version__
