"""The records of configs as one JSON file and one page."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high
from typing import Any

from sn_mm.atomic import atomic_path
from sn_mm.output.markdown import markdown_table

from ..record import machine

# Patterns of errors about a missing package, and the package.
_MISSING = {
    r"No module named '(\w+)": r'\1',
    r'pip install (?!openmim|-r)(\w+)': r'\1',
    r'(mmpretrain)': r'\1',
    r'(VPD) model, please install': 'the packages of latent diffusion',
}


@dataclass(frozen=True)
class Category:
    """The outcome of a record in a few words, and whether SN is at fault."""

    text: str
    is_failure: bool = False


OK = Category('trains a step with SN')


def category(record: dict[str, Any]) -> Category:
    """The outcome of a record."""
    status, error = record.get('status', 'load'), record.get('error', '')
    if status == 'ok':
        return Category('norms left', True) if record['norms_left'] else OK
    if status == 'no_norm':
        return Category('has no BatchNorm, GroupNorm or InstanceNorm')
    if status == 'no_model':
        return Category('holds no model')
    own = status in ('load', 'build') or record.get('own_step', 'ok') != 'ok'
    for pattern, package in _MISSING.items() if own else ():
        match = re.search(pattern, error)
        if match:
            return Category(f'needs {match.expand(package)}, which is not installed')
    if status in ('load', 'build'):
        step = 'load' if status == 'load' else 'build with its own norms'
        return Category(f'does not {step}')
    if status == 'step' and record.get('own_step', 'ok') != 'ok':
        return Category('does not train a step with its own norms either')
    return Category(
        {'switch': 'not switched', 'build_sn': 'does not build with SN'}.get(
            status, 'does not train a step with SN'
        ),
        True,
    )


def write_report(folder: Path, records: list[dict[str, Any]]) -> str:
    """Writes zoo.json and README.md, and returns the totals in a line."""
    records = sorted(records, key=lambda r: r['config'])
    totals = _count(records, lambda r: r['config'].split('::')[0])
    with atomic_path(folder / 'zoo.json') as path:
        rows = ',\n'.join(json.dumps(_filled(r)) for r in records)
        path.write_text(f'{{"totals": {json.dumps(totals)},\n"configs": [\n{rows}\n]}}\n')
    with atomic_path(folder / 'README.md') as path:
        path.write_text(_page(records, totals))
    return '; '.join(
        f'{toolbox}: ' + ', '.join(f'{n} {text}' for text, n in counts.items())
        for toolbox, counts in totals.items()
    )


def _filled(record: dict) -> dict:
    return {key: value for key, value in record.items() if value not in ([], {}, None)}


def _count(records: list[dict], key: Callable[[dict], str]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for record in records:
        counts.setdefault(key(record), Counter())[category(record).text] += 1
    return {name: dict(counter.most_common()) for name, counter in counts.items()}


def _page(records: list[dict], totals: dict[str, dict[str, int]]) -> str:
    outcomes = list(dict.fromkeys(text for counts in totals.values() for text in counts))
    trained = [r for r in records if category(r) == OK]
    parts = [
        '# Every ready-made config with SN',
        'Written by `bash tools/run_tests.sh tests/checks/test_zoo.py --every-config --record`, '
        'which says what it does; all results are in [zoo.json](zoo.json). '
        f'Code of sn_mm: {", ".join(sorted({r["sn_mm"] for r in records}))}. {machine()}.',
        markdown_table(
            ['', *totals],
            [[text, *(str(totals[t].get(text, 0)) for t in totals)] for text in outcomes]
            + [['configs', *(str(sum(totals[t].values())) for t in totals)]],
        ),
        'A step is taken once for models that are the same but for their number of classes, class '
        'weights, initial weights, `align_corners`, color statistics, image size and test '
        'settings. GLIP and Grounding DINO need '
        "BERT of the transformers package, which downloads its weights. SORT's trackers are not "
        'trained; their detectors are configs of their own.',
        '## By method',
        '"By the config" counts SN layers that `switch_norm_cfg` brought, "in place" those that '
        '`convert_switch_norm` had to bring after building, both as the median over the configs.',
        markdown_table(
            ['method', 'configs', OK.text, 'by the config', 'in place', 'norms left'],
            _by_method(records),
        ),
        '## Norms that no config can reach',
        markdown_table(['config', 'in place', 'for example'], _converted(trained)),
        '## Exceptions',
        _exceptions(records),
    ]
    return '\n\n'.join(parts) + '\n'


def _by_method(records: list[dict]) -> list[list[str]]:
    methods: dict[str, list[dict]] = {}
    for record in records:
        methods.setdefault(record['config'].rpartition('/')[0], []).append(record)
    rows = []
    for method, group in methods.items():
        trained = [r for r in group if category(r) == OK]
        counts = ([r[key] for r in trained] for key in ('sn_by_config', 'converted'))
        rows.append(
            [
                method,
                str(len(group)),
                str(len(trained)),
                *(str(median_high(values)) if values else '' for values in counts),
                str(sum(r['norms_left'] for r in group if 'norms_left' in r)),
            ]
        )
    return rows


def _converted(trained: list[dict]) -> list[list[str]]:
    """Configs with norms converted in place, those with the same names in one row."""
    groups: dict[str, list[dict]] = {}
    for record in trained:
        if record['converted']:
            method = record['config'].rpartition('/')[0]
            groups.setdefault(f'{method} {record["converted_examples"]}', []).append(record)
    return [
        [
            _several([r['config'] for r in group]),
            str(max(r['converted'] for r in group)),
            ', '.join(f'`{name}`' for name in group[0]['converted_examples']),
        ]
        for group in groups.values()
    ]


def _exceptions(records: list[dict]) -> str:
    groups: dict[str, dict[str, list[str]]] = {}
    for record in records:
        outcome = category(record)
        if outcome != OK:
            error = record.get('error', '') if 'installed' not in outcome.text else ''
            groups.setdefault(outcome.text, {}).setdefault(error, []).append(record['config'])
    sections = []
    for text, errors in groups.items():
        rows = [[_several(names), error.replace('|', '\\|')] for error, names in errors.items()]
        sections.append(f'### {text}\n\n' + markdown_table(['config', 'reason'], rows))
    return '\n\n'.join(sections)


def _several(names: list[str]) -> str:
    """The names up to three; of more, the number in each folder."""
    folders = Counter(name.rpartition('/')[0] for name in names)
    if len(names) <= 3:
        return ', '.join(names)
    return ', '.join(f'{folder} ({count})' for folder, count in folders.items())
