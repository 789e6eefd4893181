"""What a norm stands for in a comparison, and what keeps it from being compared like for like."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from ..errors import some
from ..switch import SwitchReport
from ..switch.components import constructor_arguments, resolve
from ..switch.notes import checkpoint_of, component_around
from ..switch.target import is_sn
from ..switch.toolbox import toolbox

# Models name the modules of these norms so, and those of any other norm 'bn'. The weights in a
# checkpoint have the same names.
_NAMES = {'GN': 'gn', 'Group': 'gn', 'IN': 'in', 'Instance': 'in'}


def notes_of(
    norm: str, norm_cfg: dict, cfg: Config, before: SwitchReport, report: SwitchReport
) -> list[str]:
    """What the reader of a comparison should know of a norm.

    Args:
        norm: As ``--norm`` takes it.
        norm_cfg: What it stands for on this machine.
        cfg: The switched config.
        before: Of the switch away from the config's own norms.
        report: Of the switch to this norm.

    Returns:
        Sentences in Markdown.
    """
    lines = _meanings(norm, norm_cfg) + [f'{note}.' for note in report.notes]
    left: dict[tuple[str, str], list[str]] = {}
    for entry in report.left:
        if entry.norm:
            left.setdefault((entry.norm, entry.reason), []).append(entry.path)
    for (kind, reason), paths in left.items():
        lines.append(f'{some(paths, 1)} stay {kind}: {reason}.')
    fresh: dict[str, list[str]] = {}
    for path, component in _components(cfg.model, report).items():
        settings = component_settings(component, toolbox(cfg))
        weights = _weights(path, component, cfg)
        was = next(iter(_norms_of(path, before)), norm_cfg)
        if weights and _name(was) != _name(norm_cfg):
            fresh.setdefault(_fresh_start(weights, was, settings), []).append(path)
            weights = None
        if settings.get('norm_eval') and norm_cfg['type'] in ('BN', 'SyncBN'):
            lines.append(_norm_eval(path, weights))
    return lines + [f'{", ".join(paths)}: {start}' for start, paths in fresh.items()]


def _meanings(norm: str, norm_cfg: dict) -> list[str]:
    if norm.split()[0] == 'SyncBN' and is_sn(norm_cfg):
        return [
            "on the CPU, where torch's SyncBatchNorm does not run, SN over `bn` alone, "
            'synchronized: the same equations.'
        ]
    if norm_cfg['type'] == 'GN' and 'num_groups' not in norm:
        return [f'{norm_cfg["num_groups"]} groups.']
    return []


def _components(model: dict, report: SwitchReport) -> dict[str, dict]:
    """The components with switched norms, by path."""
    paths = [entry.path for entry in report.switched if isinstance(entry.new, dict)]
    return dict(component_around(model, path) for path in paths)


def _weights(path: str, component: dict, cfg: Config) -> str | None:
    """The checkpoint that a component starts from."""
    pretrained = cfg.model.get('pretrained') if 'backbone' in path else None
    return cfg.get('load_from') or checkpoint_of(component) or pretrained


def _norm_eval(path: str, weights: str | None) -> str:
    start = f'those of {weights}' if weights else 'mean 0 and variance 1: it normalizes nothing'
    return (
        f'{path}.norm_eval=True reaches BatchNorm alone: in training it takes the running '
        f'statistics that it starts from, {start}. {path}.norm_eval=False gives it those of the '
        'batch, as the other norms have them.'
    )


def _fresh_start(weights: str, was: dict, settings: dict[str, Any]) -> str:
    """How norms start whose weights a checkpoint does not have, and whether they stay so."""
    start = ['they start with weight 1 and bias 0']
    frozen = settings.get('frozen_stages', -1)
    if isinstance(frozen, int) and frozen >= 0:
        start.append(f'frozen_stages={frozen} keeps those of its stages so')
    if was.get('requires_grad') is False:
        start.append('requires_grad=False keeps them so')
    return (
        f'the norms of {weights}, if they are {was["type"]}, have other names and do not load; '
        f'{", and ".join(start)}.'
    )


def _norms_of(path: str, report: SwitchReport) -> list[dict]:
    """The norm_cfgs that a component had before a switch."""
    entries = [entry for entry in report.switched if entry.path.startswith(f'{path}.')]
    return [entry.old for entry in entries if isinstance(entry.old, dict)]


def component_settings(component: dict, registry_scope: str) -> dict[str, Any]:
    """A component's settings, with the defaults of its class for those that it does not mention."""
    cls = resolve(component['type'], registry_scope)
    return {**constructor_arguments(cls), **dict(dict.items(component))}


def _name(norm_cfg: dict) -> str:
    kind = str(norm_cfg['type'])
    return next((name for prefix, name in _NAMES.items() if kind.startswith(prefix)), 'bn')
