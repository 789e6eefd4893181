"""Loads checkpoints: complete ones, without running code from them or dropping a weight."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

from mmengine.dist import broadcast_object_list
from mmengine.logging import print_log
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from ..checkpoints.read import read_checkpoint, read_file
from ..engine.checkpoint_loaders import imports_torchvision, torchvision_url
from ..engine.unwrap import unwrap
from ..errors import InputError, some
from ..switch.nodes import dicts
from .errors import local_rank


def check_checkpoint(path: str, resume: bool = False) -> dict:
    """Checks that a file is a complete checkpoint, without running code from it.

    Args:
        path: A local file; a URL is left to mmengine.
        resume: Whether a training continues from it, which needs more than weights.

    Returns:
        The content of the file; an empty dictionary for a URL.

    Raises:
        InputError: If it does not exist, is truncated, is not a checkpoint, or names anything but
            tensors and mmengine's own log history, or if it does not suffice to resume.
    """
    if '://' in path:
        return {}
    checkpoint = read_checkpoint(path)
    missing = [key for key in ('meta', 'message_hub', 'optimizer') if key not in checkpoint]
    if resume and missing:
        raise InputError(
            f'checkpoint {path} cannot be resumed: it holds no {", ".join(missing)}; '
            'to start from its weights, use --cfg-options load_from=PATH'
        )
    return checkpoint


def find_resumable(work_dir: str) -> str:
    """Finds the checkpoint that training continues from.

    It is the one that mmengine recorded last. If the run was killed while it wrote that one, it is
    the newest complete checkpoint in the work dir, and a line in the log names both.

    Args:
        work_dir: The work dir of the run that ended early.

    Returns:
        The path of the checkpoint.

    Raises:
        InputError: If the work dir has none.
    """
    recorded = find_latest_checkpoint(work_dir)
    files = sorted(Path(work_dir).glob('*.pth'), key=os.path.getmtime, reverse=True)
    reasons = []
    for path in dict.fromkeys([*([recorded] if recorded else []), *map(str, files)]):
        try:
            check_checkpoint(path, resume=True)
        except InputError as error:
            reasons.append(str(error))
        else:
            if reasons and local_rank() == 0:
                print_log(f'{"; ".join(reasons)}. Resuming from {path} instead.')
            return path
    raise InputError(
        f'--resume finds nothing to resume in {work_dir}: {"; ".join(reasons) or "no checkpoint"}; '
        'leave it out to start from the beginning'
    )


def check_pretrained(model: dict | list) -> None:
    """Checks that parts of a model can take their initial weights from where they are told to.

    Args:
        model: The model's config.

    Raises:
        InputError: If an ``init_cfg.checkpoint`` or ``pretrained`` names a local file that does not
            exist or cannot be loaded, or weights that MMEngine does not know without torchvision.
    """
    for key, value in _initial_weights(model):
        if (
            value.startswith('torchvision://')
            and torchvision_url(value) is None
            and not imports_torchvision()
        ):
            raise InputError(
                f'{key}={value!r} in the model needs torchvision, which is not installed or not '
                'for this torch'
            )
        if '://' not in value and not Path(value).expanduser().is_file():
            raise InputError(f'{key}={value!r} in the model does not exist')
        if '://' not in value:
            try:
                read_file(value)
            except InputError as error:
                raise InputError(f'{key} in the model: {error}') from error


def _initial_weights(model: dict | list) -> Iterator[tuple[str, str]]:
    """Key and value of each ``checkpoint`` and ``pretrained`` in a model's config."""
    for config in dicts(model):
        for key in ('checkpoint', 'pretrained'):
            if isinstance(config.get(key), str):
                yield key, config[key]


@contextmanager
def downloading(model: dict, load_from: str | None) -> Iterator[None]:
    """Runs its body, which may download weights.

    Args:
        model: The model's config.
        load_from: The checkpoint to start from.

    Raises:
        InputError: A download in the body failed; the message names the weights that are not local.
    """
    names = [value for _, value in _initial_weights(model)] + [load_from or '']
    try:
        yield
    except URLError as error:
        remote = ', '.join(dict.fromkeys(name for name in names if '://' in name))
        raise InputError(f'a download failed, of {remote}: {error.reason}') from error


def load_weights(model: nn.Module, weights: dict, path: str) -> None:
    """Loads weights into a model, all of them or none.

    Weights of whole components that the model does not have are reported and left out.

    Args:
        model: The model, changed in place.
        weights: Its state dict.
        path: Of the checkpoint, for the message.

    Raises:
        InputError: Keys are missing or unexpected, or shapes differ.
    """
    hook = model.register_load_state_dict_post_hook(_leave_out_foreign)
    try:
        load_state_dict(model, weights, strict=True)
    except RuntimeError as error:
        raise InputError(
            f'checkpoint {path} does not fit the model: {_misfits(str(error))}'
        ) from error
    finally:
        hook.remove()


def _leave_out_foreign(model: nn.Module, incompatible: Any) -> None:
    """Accepts weights of components that the model does not have; a hook of loading."""
    unexpected = incompatible.unexpected_keys
    foreign = {key for key in unexpected if not hasattr(model, key.split('.')[0])}
    if foreign:
        owners = sorted({key.split('.')[0] for key in foreign})
        print_log(
            f'Left out {len(foreign)} weights of {", ".join(owners)}: not in the model.', 'current'
        )
        unexpected[:] = set(unexpected) - foreign


def load_strictly(runner: Runner) -> None:
    """Makes a runner refuse a checkpoint that does not fit its model.

    mmengine loads what fits and logs the rest. That is right for fine-tuning, but a test or a
    resumed run with a dropped weight gives wrong numbers. Weights of whole components that the
    model does not have (an auxiliary head, a copy kept by EMA) are reported and left out, as by
    :func:`load_weights`.

    Args:
        runner: The runner, changed in place: its loading then raises :class:`InputError` if keys
            are missing or unexpected or shapes differ. Runners of other classes stay as they are.
    """
    if not isinstance(runner, Runner):
        return
    load = runner.load_checkpoint

    def load_checkpoint(filename: str, *args: Any, **kwargs: Any) -> dict:
        checkpoint, misfits = {}, ['']
        try:
            checkpoint = load(filename, *args, **{**kwargs, 'strict': True})
        except RuntimeError as error:
            if 'do not match exactly' not in str(error):
                raise
            misfits = [_misfits(str(error))]
        except (OSError, UnpicklingError) as error:  # a URL, which nothing has looked at before
            reason = str(error).partition('. ')[0]
            raise InputError(f'checkpoint {filename} cannot be loaded: {reason}') from error
        broadcast_object_list(misfits)  # mmengine raises on rank 0 only
        if misfits[0]:
            raise InputError(f'checkpoint {filename} does not fit the model: {misfits[0]}')
        return checkpoint

    unwrap(runner.model).register_load_state_dict_post_hook(_leave_out_foreign)
    runner.load_checkpoint = load_checkpoint


def _misfits(message: str) -> str:
    """Shortens mmengine's message on a state dict that does not match: counts and three of each."""
    keys = {
        'missing': re.findall(r'missing keys in source state_dict: (.*)', message),
        'unexpected': re.findall(r'unexpected key in source state_dict: (.*)', message),
        'of another shape': re.findall(r'size mismatch for (\S+):', message),
    }
    lists = {kind: ', '.join(texts).split(', ') for kind, texts in keys.items() if texts}
    if list(lists) == ['missing'] and _lacks_importance(lists['missing']):
        return _lacks_importance(lists['missing'])
    return '; '.join(f'{len(names)} {kind} ({some(names, 3)})' for kind, names in lists.items())


def _lacks_importance(missing: Iterable[str]) -> str:
    """Recognizes the weights of BatchNorm in a model with SN, and names the command for them.

    Args:
        missing: The keys that the checkpoint lacks.

    Returns:
        The reason for a message; empty if the importance is not all that is missing.
    """
    layers = {key.rpartition('.')[0] for key in missing}
    if any(not key.endswith(('mean_weight', 'var_weight')) for key in missing):
        return ''
    return (
        f"it holds BatchNorm's weights, without the importance of {len(layers)} SN layers; to "
        'train from it, sn-mm train CONFIG --cfg-options load_from=CHECKPOINT'
    )
