"""Settings and norms as the command line writes them: ``KEY=VALUE``, ``SN sync=False``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, DictAction

from ..errors import InputError


def parse_settings(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Reads settings of a config as mmengine's ``DictAction`` does.

    Args:
        option: The option that has them, for the message.
        pairs: Each ``KEY=VALUE``.

    Returns:
        Values by dotted keys.

    Raises:
        InputError: One is not a pair, or its brackets do not match.
    """
    found = Namespace(settings={})
    try:
        DictAction([option], 'settings')(ArgumentParser(), found, pairs, option)
    except (ValueError, AssertionError, RecursionError) as error:
        raise InputError(
            f'{option} expects KEY=VALUE pairs with balanced brackets, got '
            f'{" ".join(pairs)!r} ({error})'
        ) from error
    return found.settings


def parse_norm(words: Sequence[str]) -> dict[str, Any]:
    """Reads a norm as ``--norm`` takes it.

    Args:
        words: ``TYPE [KEY=VALUE ...]``, such as ``['SN', 'sync=False']``; ``a.b=1`` gives ``a`` the
            value ``{'b': 1}``.

    Returns:
        The norm_cfg, which is not checked.

    Raises:
        InputError: The words are not written in this way.
    """
    kind, *pairs = words
    if '=' in kind or not all('=' in pair for pair in pairs):
        raise InputError(
            '--norm takes TYPE [KEY=VALUE ...], such as SN sync=False, got '
            f'{" ".join(words)!r}; CONFIG goes before it'
        )
    given = Config()
    given.merge_from_dict(parse_settings('--norm', pairs))
    if 'type' in given:
        raise InputError(f'--norm names the norm first, without type=, got {list(words)}')
    return {'type': kind, **given.to_dict()}
