"""The report of a switch: the norms it changed, those it left, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.table import Table


class Switched(NamedTuple):
    """A place in the config that is SN now.

    Attributes:
        path: Dotted path in the config, as ``--cfg-options`` takes it.
        old: The value before: a norm_cfg, a component's type, or None.
        new: The value now.
        reason: The special reason for the change, '' for a plain replacement.
    """

    path: str
    old: Any
    new: Any
    reason: str = ''


class Left(NamedTuple):
    """A norm that stays as it was, or a component that stays without one.

    Attributes:
        path: Dotted path in the config; for norms that no config reaches, the module's name.
        norm: The norm's type, '' for a component without a norm.
        reason: Why.
    """

    path: str
    norm: str
    reason: str


@dataclass
class SwitchReport:
    """The result of :func:`sn_mm.switch_norm_cfg`.

    Attributes:
        switched: One entry for each place in the config that changed.
        left: One entry for each norm that stays.
        notes: One line for each thing that the user should know before training.
    """

    switched: list[Switched] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """The report as a table for ``rich.print``; the notes are its caption."""
        caption = '\n'.join(f'Note: {note}' for note in self.notes)
        table = Table(title='Switchable Normalization', caption=caption, caption_justify='left')
        for name in ('in the config', 'was', 'is', 'why'):
            table.add_column(name, overflow='fold')
        for switched in self.switched:
            table.add_row(
                switched.path, _shorten(switched.old), _shorten(switched.new), switched.reason
            )
        for left in self.left:
            table.add_row(left.path, left.norm, 'as it was', left.reason)
        return table


def _shorten(value: Any) -> str:
    """A norm_cfg as ``type, key=value, ...``."""
    if not isinstance(value, dict):
        return str(value)
    options = [f'{key}={option}' for key, option in value.items() if key != 'type']
    return ', '.join([str(value.get('type')), *options])
