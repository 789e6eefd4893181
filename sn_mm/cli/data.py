"""Checks that data sets are complete, before a model is built for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import is_abs

from ..errors import InputError


def _leaves(key: str, dataset: dict) -> Iterator[tuple[str, dict]]:
    """Yields each data set inside RepeatDataset, ConcatDataset, ... with its key in the config."""
    if 'dataset' in dataset:
        yield from _leaves(f'{key}.dataset', dataset['dataset'])
    elif 'datasets' in dataset:
        for index, inner in enumerate(dataset['datasets']):
            yield from _leaves(f'{key}.datasets.{index}', inner)
    else:
        yield key, dataset


def _needed(dataset: dict) -> Iterator[tuple[str, str]]:
    """Yields the files and folders that a data set always reads: key and path."""
    if dataset.get('ann_file'):
        yield 'ann_file', dataset['ann_file']
    loads_annotations = 'Annotations' in str(dataset.get('pipeline'))
    prefixes = dataset.get('data_prefix')
    for name, prefix in prefixes.items() if isinstance(prefixes, dict) else ():
        if name.startswith('img') or loads_annotations:
            yield f'data_prefix.{name}', prefix


def check_data(cfg: Config, splits: Iterable[str]) -> None:
    """Checks that the annotation files and folders that a config names exist.

    Data sets with ``backend_args`` (object storage and the like) are not checked.

    Args:
        cfg: A config of mmdet, mmseg or another toolbox on mmengine's ``BaseDataset``.
        splits: Which of ``'train'``, ``'val'`` and ``'test'`` the run reads.

    Raises:
        InputError: If a file or folder is missing; the message names it and its key.
    """
    for split in splits:
        loader, evaluator = cfg.get(f'{split}_dataloader'), cfg.get(f'{split}_evaluator')
        outer = (loader or {}).get('dataset', {})
        for key, dataset in _leaves(f'{split}_dataloader.dataset', outer):
            if not dataset.get('backend_args'):
                root = dataset.get('data_root') or ''
                for name, path in _needed(dataset):
                    full = path if is_abs(path) else os.path.join(root, path)
                    _check(f'{key}.{name}', full, f'{key}.data_root={root!r}')
        metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator or {}]
        for metric in metrics:
            if metric.get('ann_file') and not metric.get('backend_args'):
                _check(f'{split}_evaluator.ann_file', metric['ann_file'], 'not under a data_root')


def _check(key: str, path: str, origin: str) -> None:
    file = Path(path).expanduser()
    if '://' not in path and not (file.is_file() or (file.is_dir() and any(file.iterdir()))):
        reason = 'is empty' if file.exists() else 'does not exist'
        raise InputError(f'{key}: {path!r} {reason} ({origin})')


def build_loops(runner: Runner, splits: Iterable[str]) -> None:
    """Builds a runner's loops with their data sets, which must not be empty.

    Args:
        runner: The runner; it builds these loops itself otherwise, later and one by one.
        splits: Which of ``'train'``, ``'val'`` and ``'test'`` the run uses.

    Raises:
        InputError: If a data set has no samples.
    """
    for split in splits:
        try:
            loop = getattr(runner, f'{split}_loop')
            empty = loop is not None and len(loop.dataloader.dataset) == 0
        except ValueError as error:  # mmengine's BaseDataset without samples
            if 'need at least one array to concatenate' not in str(error):
                raise
            empty = True
        if empty:
            raise InputError(
                f'{split}_dataloader.dataset has no samples: its folders hold no file with its '
                'suffixes, or its filter_cfg leaves none'
            )
