"""Warnings about the settings of a switched config that work against SN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .report import SwitchReport


def take_notes(model: dict, report: SwitchReport, hooks: Sequence[dict] = ()) -> list[str]:
    """Finds the settings of a switched config that work against SN.

    With them SN would not learn, weights would not load, or statistics would not be measured.

    Args:
        model: The switched model's config.
        report: Of the switch.
        hooks: The config's custom hooks.

    Returns:
        One line for each.
    """
    frozen, renamed, fixed = {}, {}, []
    for entry in report.switched:
        if not isinstance(entry.new, dict):
            continue
        path, component = component_around(model, entry.path)
        checkpoint = checkpoint_of(component)
        if 'backbone' in path:
            checkpoint = checkpoint or model.get('pretrained')
        equal = 'init_importance' not in entry.new
        if checkpoint and equal and component.get('frozen_stages', -1) >= 0:
            frozen[path] = component['frozen_stages'], checkpoint
        if checkpoint and str((entry.old or {}).get('type')) in ('GN', 'IN'):
            renamed[path] = entry.old['type'], checkpoint
        if equal and entry.new.get('requires_grad') is False:
            fixed.append(entry.path)
    notes = [
        f'{path}.frozen_stages={stages} with the weights of {checkpoint}: SN in these stages keeps '
        'the importance that it starts from, BatchNorm or close to it; '
        f'{path}.frozen_stages=-1 lets it learn'
        for path, (stages, checkpoint) in frozen.items()
    ]
    notes += [
        f'{path}: modules named after {norm} are named bn with SN; its weights of {norm} in '
        f'{checkpoint} do not load'
        for path, (norm, checkpoint) in renamed.items()
    ]
    if fixed:
        notes.append(
            'requires_grad=False keeps the importance that SN starts from in '
            f'{", ".join(fixed)}: the BatchNorm whose weights it loads, or an equal one; '
            'requires_grad=True in the norm_cfg (--norm SN requires_grad=True) lets it learn'
        )
    if any('PreciseBNHook' in str(hook['type']) for hook in hooks):
        notes.append(
            "PreciseBNHook measures BatchNorm's statistics alone; dict(type='PreciseSNHook', "
            "bn=True) in its place measures SN's too"
        )
    return notes


def component_around(model: dict, path: str) -> tuple[str, dict]:
    """The innermost component around ``model``'s entry at ``path``, with its own path."""
    component: tuple[str, dict] = ('model', model)
    node: Any = model
    parts = path.split('.')
    for depth, part in enumerate(parts[1:-1], start=2):
        node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
        if isinstance(node, dict) and 'type' in node:
            component = '.'.join(parts[:depth]), node
    return component


def checkpoint_of(component: dict) -> str | None:
    """The file that a component's initial weights come from."""
    inits = component.get('init_cfg')
    for init in inits if isinstance(inits, (list, tuple)) else [inits]:
        if isinstance(init, dict) and init.get('checkpoint'):
            return init['checkpoint']
    return component.get('pretrained')
