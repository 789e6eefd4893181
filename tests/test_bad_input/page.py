"""Writes docs/records/bad_input.md from cases.yaml: python tests/test_bad_input/page.py"""

from __future__ import annotations

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / 'docs/records/bad_input.md'
CASES: dict[str, dict] = yaml.safe_load((FOLDER / 'cases.yaml').read_text('utf-8'))


def _cell(text: str) -> str:
    return '`{}`'.format(text.replace('|', '\\|'))


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    lines = [head, ('---', '---'), *rows]
    return ['', *(f'| {left} | {right} |' for left, right in lines)]


def render() -> str:
    """The page."""
    count = sum(map(len, CASES['sections'].values()))
    lines = [CASES['introduction'].format(count=count).rstrip()]
    files = [(_cell(name), what) for name, what in CASES['files'].items()]
    lines += _table(('file', 'content'), files)
    for title, cases in CASES['sections'].items():
        rows = [(_cell(case['given']), _cell(case['line'])) for case in cases]
        lines += ['', f'## {title}', *_table(('given', 'line'), rows)]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    PAGE.write_text(render(), encoding='utf-8')
