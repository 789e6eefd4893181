"""Checks that data sets are complete, before a model is built for them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.utils import is_abs

from ..engine.unwrap import unwrap
from ..errors import InputError, check_positive_int, check_type
from ..switch.components import ancestors, resolve
from ..switch.toolbox import toolbox
from .annotations import classes_of, explain_annotations
from .label_maps import check_label_maps, suffixes_in


def _leaves(key: str, dataset: Any) -> Iterator[tuple[str, Any]]:
    """Yields each data set inside RepeatDataset, ConcatDataset, ... with its key in the config.

    Args:
        key: The outer data set's.
        dataset: Its config, or the data set itself.
    """
    parts = dataset if isinstance(dataset, dict) else getattr(dataset, '__dict__', {})
    if 'dataset' in parts:
        yield from _leaves(f'{key}.dataset', parts['dataset'])
    elif 'datasets' in parts:
        for index, inner in enumerate(parts['datasets']):
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


def _full_path(dataset: dict, path: str) -> str:
    return path if is_abs(path) else os.path.join(dataset.get('data_root') or '', path)


def check_data(cfg: Config, splits: Iterable[str]) -> None:
    """Checks that the annotation files and folders that a config names exist.

    Data sets with ``backend_args`` (object storage and the like) are not checked.

    Args:
        cfg: A config of mmdet, mmseg or another toolbox on mmengine's ``BaseDataset``.
        splits: Which of ``'train'``, ``'val'`` and ``'test'`` the run reads.

    Raises:
        InputError: If a file or folder is missing, or a setting of the data loader is of the wrong
            kind; the message names it and its key. Or if a metric reads other annotations than its
            data set.
    """
    for split in splits:
        loader, evaluator = cfg.get(f'{split}_dataloader'), cfg.get(f'{split}_evaluator')
        outer = (loader or {}).get('dataset', {})
        annotations = set()
        for key, dataset in _leaves(f'{split}_dataloader.dataset', outer):
            if not dataset.get('backend_args'):
                root = dataset.get('data_root') or ''
                check_type(f'{key}.data_root', root, str, 'a path')
                for name, path in _needed(dataset):
                    full = _full_path(dataset, path)
                    _check(f'{key}.{name}', full, f'{key}.data_root={root!r}')
                    if name == 'ann_file':
                        annotations.add(os.path.abspath(full))
        metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator or {}]
        judged = [m['ann_file'] for m in metrics if m.get('ann_file') and not m.get('backend_args')]
        for file in judged:
            _check(f'{split}_evaluator.ann_file', file, 'not under a data_root')
        # A panoptic data set has a second metric, with the file of the instances.
        if annotations and judged and not _resolved(annotations) & _resolved(judged):
            raise InputError(
                f'{split}_evaluator.ann_file: {judged[0]!r} is not the annotation file of '
                f'{split}_dataloader.dataset, {_relative(annotations)}'
            )
        if loader:
            _check_loader(f'{split}_dataloader', loader)


def _resolved(paths: Iterable[str]) -> set[str]:
    return set(map(os.path.realpath, paths))


def _relative(paths: Iterable[str]) -> str:
    return ', '.join(repr(os.path.relpath(path)) for path in sorted(paths))


def _check_loader(key: str, loader: dict) -> None:
    if 'batch_size' in loader:
        check_positive_int(f'{key}.batch_size', loader['batch_size'])
    workers = loader.get('num_workers', 0)
    if not isinstance(workers, int) or workers < 0:
        raise InputError(f'{key}.num_workers must be an int >= 0, got {workers!r}')


def _check(key: str, path: str, origin: str) -> None:
    file = Path(path).expanduser()
    if '://' not in path and not (file.is_file() or (file.is_dir() and any(file.iterdir()))):
        reason = 'is empty' if file.exists() else 'does not exist'
        raise InputError(f'{key}: {path!r} {reason} ({origin})')


def build_loops(runner: Runner, splits: Iterable[str]) -> None:
    """Builds a runner's loops with their data sets, and checks these.

    Args:
        runner: The runner, which would build them later and one by one.
        splits: Which of ``'train'``, ``'val'`` and ``'test'`` the run uses.

    Raises:
        InputError: If a data set has no samples, its first image does not exist, its annotation
            file is broken, the classes of data set, annotation file and model differ, or as
            :func:`~sn_mm.cli.label_maps.check_label_maps`.
    """
    for split in splits:
        try:
            loop = getattr(runner, f'{split}_loop')
        except Exception as error:  # each data set has its own for a file that it cannot read
            _explain(runner.cfg, split)
            # mmengine's BaseDataset without samples
            if 'need at least one array to concatenate' not in str(error):
                raise
            raise _no_samples(split) from error
        if loop is None:
            continue
        if len(loop.dataloader.dataset) == 0:
            _explain(runner.cfg, split)
            raise _no_samples(split)
        for key, dataset in _leaves(f'{split}_dataloader.dataset', loop.dataloader.dataset):
            _check_first_image(key, dataset)
            _check_classes(runner, split, key, dataset)
            check_label_maps(key, dataset, unwrap(runner.model), split == 'train')


def _no_samples(split: str) -> InputError:
    return InputError(
        f'{split}_dataloader.dataset has no samples: its folders hold no file with its suffixes, '
        'or its filter_cfg leaves none'
    )


def _explain(cfg: Config, split: str) -> None:
    """Raises InputError where the files of a data set are at fault: annotations, or suffixes."""
    for key, dataset in _leaves(f'{split}_dataloader.dataset', cfg[f'{split}_dataloader'].dataset):
        kind = resolve(dataset.get('type'), toolbox(cfg), DATASETS)
        if dataset.get('ann_file'):
            path = _full_path(dataset, dataset['ann_file'])
            explain_annotations(f'{key}.ann_file', path, classes_of(dataset, kind))
        elif 'BaseSegDataset' in ancestors(kind):
            default = inspect.signature(kind).parameters.get('img_suffix')
            suffix = dataset.get('img_suffix', default.default if default else '.jpg')
            prefixes = dataset.get('data_prefix') or {}
            folder = _full_path(dataset, prefixes.get('img_path') or '')
            other = suffixes_in(folder, 'img_suffix', suffix)
            if other:
                raise InputError(f'{key} has no samples in {folder!r}{other}')


def _check_first_image(key: str, dataset: Any) -> None:
    """Checks that the first image exists: data sets list what their annotation file names."""
    if not isinstance(dataset, BaseDataset):
        return
    steps = dataset.pipeline.transforms
    loaders = [step for step in steps if type(step).__name__ == 'LoadImageFromFile']
    if any(not getattr(loader, 'backend_args', None) for loader in loaders):
        image = dataset.get_data_info(0).get('img_path', '')
        if image and '://' not in image and not Path(image).is_file():
            others = sorted(path.name for path in Path(image).parent.glob(f'{Path(image).stem}.*'))
            there = f', {", ".join(others)} does' if others else ''
            setting = ': set img_suffix' if others and hasattr(dataset, 'img_suffix') else ''
            raise InputError(f'{key}: its first image, {image!r}, does not exist{there}{setting}')


# Heads that tell the data set's classes apart, and their subclasses for edges, depth, foreground.
_CLASSIFIERS = {
    'mmdet': {'BBoxHead', 'FCNMaskHead', 'BaseDenseHead', 'DETRHead'},
    'mmseg': {'BaseDecodeHead'},
}
_OTHER_HEADS = {'STDCHead', 'VPDDepthHead', 'RPNHead'}


def _check_classes(runner: Runner, split: str, key: str, dataset: Any) -> None:
    """Compares the classes of a data set with its annotation file and the model's heads."""
    info = getattr(dataset, 'metainfo', {})
    classes = info.get('classes')
    kinds = _CLASSIFIERS.get(toolbox(runner.cfg))
    if kinds is None or not isinstance(classes, (list, tuple)):
        return
    categories = getattr(dataset, 'cat_ids', None)
    if categories and len(categories) != len(classes):  # labels are positions in cat_ids
        _explain(runner.cfg, split)
    allowed = {len(classes), len(info.get('thing_classes', classes))}
    model: Any = unwrap(runner.model)
    if hasattr(model, 'language_model'):  # classes are words to it
        return
    for name, head in model.named_modules():
        given, own = getattr(head, 'num_classes', None), ancestors(type(head))
        proposes = 'rpn_head' in name.split('.')  # any head in this place has one class, foreground
        if own & kinds and not own & _OTHER_HEADS and not proposes and given not in allowed:
            raise InputError(
                f'model.{name}.num_classes={given}, and {key} has {len(classes)} classes'
            )
