"""Writes the page of versions from the reports of noxfile.py: ``versions_page REPORTS PAGE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from checks.junit import Report, read_report

HEAD = """# Versions

sn_mm needs Python 3.9 or newer and torch 2.1 or newer. The table has the versions that it was
tested with, on a CPU: for each row all tests that are not marked `slow` ran in an environment of
its own, and Triton's kernels ran in Triton's interpreter. A test is skipped, and says so, where a
row lacks a package or a function of torch that it needs.

```bash
nox                                  # makes the environments, runs the tests, writes this page
nox -s 'versions(2.4.1)' page        # one row
```

What older versions lack:

- `torch.compile` takes a model with SN as one graph from torch 2.4 on. Older versions break the
  graph at each layer, and compute the same. `torch.export` is tested from torch 2.6 on.
- torch 2.4 changes the order of collectives in a graph. With synchronized layers, compile the model
  on all ranks or on none.
- The kernels for CUDA need Triton 3.0, which torch 2.4 brings. With older versions, and wherever a
  first kernel fails, layers take PyTorch's own operations, and one warning says why. Triton's
  compiler takes the kernels from 3.0 on; its interpreter, in which they are tested without a GPU,
  runs them from 3.2 on.
- The commands of sn_mm check local checkpoints with every torch. A toolbox's own script loads them
  as MMEngine does: before torch 2.6 without any check.
- torch 2.1 refuses batches of gradients (`is_grads_batched=True`) with an error of its own.

| row | Python | torch | NumPy | Triton | passed | failed | skipped | date |
|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def page(rows: dict[str, tuple[Report, dict[str, str]]]) -> str:
    """The page: a table of the rows, and for each what failed and why tests were skipped.

    Args:
        rows: By name the report of the tests and the versions of the packages in the environment.
    """
    table, details = [], []
    for row, (report, versions) in rows.items():
        named = (versions.get(name, '-') for name in ('Python', 'torch', 'numpy', 'triton'))
        counts = report.passed, len(report.failed), sum(report.skipped.values())
        table.append('| ' + ' | '.join(map(str, (row, *named, *counts, report.date))) + ' |')
        others = [f'{k} {v}' for k, v in sorted(versions.items()) if k.startswith(('mm', 'onedl'))]
        details += ['', f'## {row}', '', f'With {", ".join(others) or "torch alone"}.', '']
        details += [f'- failed: `{name}`' for name in report.failed]
        details += [f'- {n} skipped: {reason}' for reason, n in report.skipped.most_common()]
    return HEAD + '\n'.join([*table, *details]) + '\n'


def _order(file: Path) -> tuple:
    """Versions of torch in their order, names after them."""
    row = file.stem
    return (0, *map(int, row.split('.'))) if row[0].isdigit() else (1, row != 'newest', row)


def main() -> None:
    folder, target = map(Path, sys.argv[1:])
    rows = {}
    for file in sorted(folder.glob('*.xml'), key=_order):
        versions = json.loads(file.with_suffix('.json').read_text())
        rows[file.stem] = read_report(file), versions
    target.write_text(page(rows), encoding='utf-8')


if __name__ == '__main__':
    main()
