"""Writes docs/versions.md from the test reports of tools/check_versions.sh, one for each row."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

PACKAGES = ('torch', 'triton', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain',
            'mmaction2', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection',
            'onedl-mmsegmentation')  # fmt: skip
HEAD = """# Versions

The tests that are not marked `slow`, run with each of these on a CPU; Triton's kernels run in its
interpreter. A test of what a row does not have, a package or a function of torch, says so and is
skipped.

```bash
bash tools/check_versions.sh             # makes the environments, runs the tests, writes this page
bash tools/check_versions.sh 2.4.1       # one row
```

What older versions lack:

- `torch.compile` takes a model with SN as one graph from torch 2.4 on. Before, the graph breaks at
  each layer, with the same numbers. `torch.export` is tested from torch 2.6 on. With torch 2.4 and
  synchronised layers compile the model on all ranks or on none: it changes the order of
  collectives in a graph.
- The kernels for CUDA need Triton 3.0, which torch 2.4 brings. Before, and wherever a first kernel
  fails, layers take PyTorch's own operations and one warning says why. Triton's interpreter, in
  which the kernels are tested without a GPU, runs them from 3.2 on; its compiler from 3.0 on.
- Before torch 2.6 `torch.load(weights_only=True)` takes no names, so commands read checkpoints with
  an unpickler of the same names. Weights behind a URL are MMEngine's to load, without such a list.
- torch 2.1 refuses batches of gradients (`is_grads_batched=True`) by an error of its own.
"""


class Result(NamedTuple):
    """One row's run: ``skipped`` counts each reason, ``failed`` names tests."""

    row: str
    date: str
    versions: dict[str, str]
    passed: int
    failed: list[str]
    skipped: Counter[str]


def installed() -> dict[str, str]:
    """The versions of Python and of what is tested with it, in this environment."""
    found = {'Python': platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read(report: Path) -> Result:
    """Reads a report that pytest wrote, and the versions beside it."""
    suite = ElementTree.parse(report).getroot()[0]
    failed, skipped, passed = [], Counter(), 0
    for case in suite.iter('testcase'):
        skip = case.find('skipped')
        if case.find('failure') is not None or case.find('error') is not None:
            failed.append(f'{case.get("classname")}::{case.get("name")}')
        elif skip is not None:
            skipped[_reason(skip)] += 1
        else:
            passed += 1
    versions = json.loads(report.with_suffix('.json').read_text())
    date = suite.get('timestamp', '')[:10]
    return Result(report.stem, date, versions, passed, failed, skipped)


def _reason(skip: ElementTree.Element) -> str:
    whole = re.search(r"Skipped: (.*)'\)", skip.text or '')  # a file of tests
    return ' '.join((whole[1] if whole else skip.get('message') or 'no reason').split())


def page(results: list[Result]) -> str:
    """The page: a table of the rows, and for each what failed and why tests were skipped."""
    lines = [HEAD, '| row | Python | torch | NumPy | Triton | passed | failed | skipped | date |']
    lines.append('|---|---|---|---|---|---|---|---|---|')
    for r in results:
        versions = (r.versions.get(name, '-') for name in ('Python', 'torch', 'numpy', 'triton'))
        counts = r.passed, len(r.failed), sum(r.skipped.values())
        lines.append('| ' + ' | '.join(map(str, (r.row, *versions, *counts, r.date))) + ' |')
    for r in results:
        others = [f'{k} {v}' for k, v in r.versions.items() if k.startswith(('mm', 'onedl'))]
        lines += ['', f'## {r.row}', '', f'With {", ".join(others) or "torch alone"}.', '']
        lines += [f'- failed: `{name}`' for name in r.failed]
        lines += [f'- {n} skipped: {reason}' for reason, n in r.skipped.most_common()]
    return '\n'.join(lines) + '\n'


def main() -> None:
    row, folder, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    (folder / f'{row}.json').write_text(json.dumps(installed()))
    results = [read(report) for report in sorted(folder.glob('*.xml'), key=_order)]
    target.write_text(page(results), encoding='utf-8')
    (done,) = (r for r in results if r.row == row)
    print(
        f'{row}: {done.passed} passed, {len(done.failed)} failed, '
        f'{sum(done.skipped.values())} skipped; written to {target}'
    )


def _order(report: Path) -> tuple:
    """Versions of torch in their order, names after them."""
    row = report.stem
    return (0, *map(int, row.split('.'))) if row[0].isdigit() else (1, row != 'newest', row)


if __name__ == '__main__':
    main()
