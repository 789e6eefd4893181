"""The records as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .errors import PEERS, QUANTITIES, Record


def errors_of(
    quantity: str, memory_format: str, records: Sequence[Record], backends: Iterable[str]
) -> str:
    """A row a case: the relative errors of all layers."""
    columns = [*PEERS, *backends]
    chosen = [r for r in records if (r.quantity, r.memory_format) == (quantity, memory_format)]
    cells = [
        [r.case, *(f'{r.errors[k]:.1e}' if k in r.errors else '-' for k in columns)] for r in chosen
    ]
    return markdown([f'{quantity}, {memory_format}', *PEERS, *(f'SN {k}' for k in backends)], cells)


def shares_of_bound(records: Sequence[Record], backends: Iterable[str]) -> str:
    """A row a quantity: each backend's largest error as a share of its bound, and the case."""

    def worst(quantity: str, backend: str) -> str:
        record = max(
            (r for r in records if r.quantity == quantity), key=lambda r: r.shares[backend]
        )
        return f'{record.shares[backend]:.2f} ({record.case})'

    cells = [[q, *(worst(q, backend) for backend in backends)] for q in QUANTITIES]
    return markdown(['share of the bound', *(f'SN {k}' for k in backends)], cells)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    justify: list[Callable[[str, int], str]] = [str.ljust, *[str.rjust] * (len(head) - 1)]

    def line(cells: Sequence[str]) -> str:
        return f'| {" | ".join(j(c, w) for j, c, w in zip(justify, cells, widths))} |'

    rule = '|'.join(['-' * (widths[0] + 2), *('-' * (w + 1) + ':' for w in widths[1:])])
    return '\n'.join([line(head), f'|{rule}|', *(line(row) for row in rows)])
