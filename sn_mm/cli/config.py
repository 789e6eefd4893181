"""From the command line to one complete config: find it, load it, override it."""

from __future__ import annotations

import os
from argparse import Namespace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hooks import Hook

from ..errors import InputError, check_number
from ..output.files import check_folder
from ..switch.nodes import dicts
from ..switch.option import parse_settings
from ..switch.target import check_norms
from ..switch.toolbox import import_sn_mm, toolbox


def locate_config(name: str) -> Path:
    """Finds a config file.

    Args:
        name: A path, or ``PACKAGE::PATH`` for a config that ships in an installed toolbox. Nothing
            is installed or downloaded.

    Returns:
        The path of the file.

    Raises:
        InputError: If the package is not installed or the file does not exist; the message holds
            the nearest names.
    """
    package, separator, path = name.rpartition('::')
    if separator:
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise InputError(
                f'config {name}: the package {package!r} is not installed '
                f'(pip install {MODULE2PACKAGE.get(package, package)})'
            )
        root = Path(spec.origin).parent / '.mim' / 'configs'
        candidates = root.rglob('*.py')
    else:
        root = Path(path).parent
        while not root.is_dir():
            root = root.parent
        candidates = (file for pattern in ('*.py', '*/*.py') for file in root.glob(pattern))
    file = root / path if separator else Path(path)
    if file.is_file():
        return file
    names = {f'{package}{separator}{c.relative_to(root) if separator else c}' for c in candidates}
    near = get_close_matches(str(name), sorted(names), n=3)
    raise InputError(
        f'config {name} {"is a folder" if file.is_dir() else "does not exist"}; '
        f'nearest: {", ".join(near) or "none"}'
    )


def read_config(name: str) -> Config:
    """Loads a config as it is.

    Args:
        name: As for :func:`locate_config`.

    Raises:
        InputError: If it cannot be found or loaded.
    """
    file = locate_config(name)
    try:
        cfg = Config.fromfile(file)
    except Exception as error:  # a config is a program, and fails as programs do
        known = isinstance(error, (OSError, SyntaxError, ImportError))
        reason = str(error) if known else f'{type(error).__name__}: {error}'
        lacks = getattr(error, 'name', None) == 'pkg_resources'
        hint = "; setuptools 82 dropped it: pip install 'setuptools<82'" if lacks else ''
        raise InputError(f'config {name} cannot be loaded: {reason}{hint}') from error
    _drop_own_scope(cfg)
    return cfg


def _drop_own_scope(cfg: Config) -> None:
    """Lets MMEngine look for what a recipe of sn_mm names in the toolbox of the recipe.

    MMEngine marks variables of a base ``sn_mm::...`` (``{{_base_.train_pipeline}}``) with the scope
    ``sn_mm``, which has no transforms. All that it has is in MMEngine's root registries too.
    """
    for node in dicts(cfg._cfg_dict):
        if node.get('_scope_') == 'sn_mm':
            del node['_scope_']


def load_config(args: Namespace, split: str) -> Config:
    """Loads the config that the command line names.

    Its ``custom_imports`` name ``sn_mm``, so that the copy in the work dir builds in the toolboxes'
    own scripts too.

    Args:
        args: The parsed options of ``sn_mm_cli.parsers.add_config_arguments``.
        split: ``'train'`` or ``'test'``, which the config must be complete for.

    Returns:
        The config with its overrides, ``launcher`` and ``work_dir``.

    Raises:
        InputError: If the config cannot be found or loaded, if an override does not fit it, if the
            toolbox that it is written for is not installed, if the config lacks a part, or if a
            norm_cfg names no norm or gives SN arguments that it refuses.
    """
    settings = parse_settings('--cfg-options', args.cfg_options)
    cfg = read_config(args.config)
    try:
        cfg.merge_from_dict(settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f'--cfg-options does not fit config {args.config}: {error}') from error
    _check_kinds(cfg, args.config)
    package = toolbox(cfg)
    if package in MODULE2PACKAGE and find_spec(package) is None:
        raise InputError(
            f'config {args.config} is written for {package}, which is not installed '
            f'(pip install {MODULE2PACKAGE[package]})'
        )
    last = 'optim_wrapper' if split == 'train' else 'test_evaluator'
    missing = [
        key for key in ('model', f'{split}_dataloader', f'{split}_cfg', last) if not cfg.get(key)
    ]
    if missing:
        raise InputError(f'config {args.config} has no {", ".join(missing)} to {split} with')
    check_norms(cfg.model, package)
    import_sn_mm(cfg)
    cfg.launcher = args.launcher
    if args.launcher == 'pytorch':  # the launcher passes it as an option or as a variable
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'./work_dirs/{Path(cfg.filename).stem}'
    check_folder('work_dir', cfg.work_dir)
    return cfg


_KINDS: dict[type | tuple[type, ...], tuple[str, ...]] = {
    dict: (
        'model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'val_cfg',
        'test_cfg', 'optim_wrapper', 'optim_wrapper.optimizer', 'custom_imports', 'default_hooks',
        'env_cfg', 'randomness', 'train_dataloader.dataset', 'val_dataloader.dataset',
        'test_dataloader.dataset',
    ),
    str: ('default_scope', 'load_from', 'work_dir'),
    int: ('randomness.seed', 'default_hooks.checkpoint.interval', 'default_hooks.logger.interval'),
    (list, tuple): ('custom_hooks',),
    (dict, list, tuple): ('val_evaluator', 'test_evaluator', 'param_scheduler'),
}  # fmt: skip
_COUNTS = 'train_cfg.max_epochs', 'train_cfg.max_iters', 'train_cfg.val_interval'


def _check_kinds(cfg: Config, name: str) -> None:
    """Refuses a config with a value of another kind than mmengine takes."""
    for kind, keys in _KINDS.items():
        wanted = ' or '.join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        for key in keys:
            value = _value(cfg, key)
            if value is not None and not isinstance(value, kind):
                raise InputError(f'{key} in config {name} must be of type {wanted}, got {value!r}')
    for key in _COUNTS:
        if _value(cfg, key) is not None:
            check_number(f'{key} in config {name}', _value(cfg, key), 1)
    for hook in cfg.get('custom_hooks') or ():
        if not isinstance(hook, (dict, Hook)):
            raise InputError(f'custom_hooks in config {name} must hold dicts, got {hook!r}')


def _value(cfg: Config, key: str) -> Any:
    """The value under a dotted key; None where there is none."""
    value: Any = cfg
    for part in key.split('.'):
        value = value.get(part) if isinstance(value, (Config, dict)) else None
    return value
