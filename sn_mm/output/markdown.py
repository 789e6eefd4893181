"""Tables in Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays out a table in Markdown, whose columns but the first are set to the right.

    Args:
        head: Names of the columns.
        rows: The texts of each row.
    """
    from rich import box  # what also prints tables is of use without rich
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.MARKDOWN)
    for number, name in enumerate(head):
        table.add_column(name, justify='right' if number else 'left', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=10**4, markup=False, emoji=False, highlight=False).print(table)
    return '\n'.join(line.rstrip() for line in text.getvalue().strip().splitlines())
