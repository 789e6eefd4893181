"""A warning about norms of the batch norm family that a switched model still has."""

from __future__ import annotations

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..._deprecated import warn_renamed
from ...model.norms import FROZEN, Norm, find_norms
from ...switch.extent import check_extent, reason_to_leave
from ..unwrap import unwrap


class UnconvertedNormHook(Hook):
    """Names the norms that :func:`sn_mm.switch_norm_cfg` could not reach, in one warning.

    Args:
        extent: The extent of the switch. Default: 'existing'.

    Raises:
        InputError: Another extent than 'existing', 'backbone' or 'all'.
    """

    def __init__(self, extent: str = 'existing') -> None:
        check_extent(extent)
        self.extent = extent

    def before_run(self, runner: Runner) -> None:
        found = find_norms(unwrap(runner.model))
        norms = [n for n in found if not reason_to_leave(n.name, self.extent)]
        converted = [_names(norm) for norm in norms if not norm.reason]
        kept = [_names(norm) for norm in norms if norm.reason and norm.layer]
        frozen = [_names(norm) for norm in norms if norm.reason == FROZEN]
        sentences = []
        if converted:
            sentences.append(
                f'{len(converted)} norms are hard-coded in the model, where no config reaches '
                f'them: {", ".join(converted)}. sn-mm train and sn-mm test convert them with '
                '--norm SN.'
            )
        if kept:
            sentences.append(
                f'{len(kept)} norms do more than a norm, and stay, because SN would drop that '
                f'part: {", ".join(kept)}.'
            )
        if frozen:
            sentences.append(
                f'{len(frozen)} norms are frozen BatchNorms, and stay: {", ".join(frozen)}.'
            )
        if sentences:
            print_log(' '.join(sentences), 'current', logging.WARNING)


def _names(norm: Norm) -> str:
    return f'{norm.name} ({type(norm.module).__name__})'


def LeftoverNormHook(scope: str = 'existing') -> UnconvertedNormHook:
    """The name and the argument that configs switched by version 1.0 have."""
    warn_renamed(f'LeftoverNormHook(scope={scope!r})', f'UnconvertedNormHook(extent={scope!r})')
    return UnconvertedNormHook(scope)
