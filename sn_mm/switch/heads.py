"""The extent 'all': SN where the paper has it and ready-made configs have no norm."""

from __future__ import annotations

from typing import Any

from .components import ancestors, constructor_arguments, shares_levels
from .extent import reason_to_leave
from .report import Left, Switched, SwitchReport
from .target import replace

_ROLES = ('neck', 'bbox_head', 'mask_head')
# The head of two linear layers, and the paper's: four convolutions and one linear layer.
_LINEAR, _CONVOLUTIONS = 'Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead'
_CHANNELS = 256
# Classes that take a norm_cfg and build no norm from it, but SSDHead where its config has one.
_UNUSED = {'HRFPN', 'SSDHead'}


def add_norms(config: dict, cls: Any, path: str, target: dict, report: SwitchReport) -> None:
    """Gives SN to a neck, box head or mask head that takes a norm and has none.

    Args:
        config: Config of one component, changed in place.
        cls: Its class.
        path: Its path in the config.
        target: The norm_cfg that ``check_target`` gave.
        report: Gets a line for each change, and for each head that cannot use a norm.
    """
    role = next((part for part in reversed(path.split('.')) if not part.isdigit()), '')
    if role not in _ROLES or reason_to_leave(path, 'all') or config.get('norm_cfg') is not None:
        return
    if getattr(cls, '__name__', '') == _LINEAR:
        old = config['type']
        config['type'] = _CONVOLUTIONS if old == _LINEAR else f'mmdet.{_CONVOLUTIONS}'
        config.setdefault('conv_out_channels', _CHANNELS)
        reason = f'the head of the paper, of {config["conv_out_channels"]} channels'
        report.switched.append(Switched(f'{path}.type', _LINEAR, _CONVOLUTIONS, reason))
    elif constructor_arguments(cls).get('norm_cfg', '') is not None:
        return
    elif ancestors(cls) & _UNUSED:
        report.left.append(Left(path, '', f'{cls.__name__} makes no use of a norm'))
        return
    elif not _has_convolutions(config, ancestors(cls)):
        report.left.append(Left(path, '', f'{cls.__name__} has no convolutions to normalize'))
        return
    config['norm_cfg'] = new = replace({}, None, target, shares_levels(cls))
    report.switched.append(Switched(f'{path}.norm_cfg', None, new, 'had no norm'))


def _has_convolutions(config: dict, names: set[str]) -> bool:
    """Whether a component has convolutions: box heads may have none, all others have some."""
    counts = (config.get(f'num_{part}_convs', 0) for part in ('shared', 'cls', 'reg'))
    return 'ConvFCBBoxHead' not in names or _CONVOLUTIONS in names or any(counts)
