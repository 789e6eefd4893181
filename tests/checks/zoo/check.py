"""One config with SN: load, build with its own norms, switch, build, train one step."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from torch import distributed, nn

import sn_mm
from sn_mm.benchmark.batches import loads, make_batch
from sn_mm.benchmark.configs import build, build_for_one_process, find
from sn_mm.switch import convert_unconverted, find_unconverted
from sn_mm.switch.nodes import dicts

NORM_CFG = {'type': 'SN'}
EXTENT = 'existing'
# Sides of the images in pixels, the next where a model cannot do with less (SSD512).
SIZES = (64, 128, 320, 512)
# Errors of models on images that are too small.
_TOO_SMALL = (RuntimeError, AssertionError, ValueError, IndexError)
# Samples and proposals of an image, which only cost time.
_AT_MOST = {'num': 32, 'max_per_img': 50, 'nms_pre': 200}
# Settings that do not matter to one training step: models that differ only in them are the same.
_IRRELEVANT = (
    'init_cfg',
    'pretrained',
    'teacher_ckpt',
    'test_cfg',
    'mean',
    'std',
    'size',
    'align_corners',
    'class_weight',
)
_OWN_FIELDS = ('config', 'sn_mm', 'cpu_s', 'rss_mib', 'same_model_as')


def check_config(
    path: Path, done: dict[str, dict], progress: Callable[[dict], None]
) -> dict[str, Any]:
    """Checks one config of a toolbox. Changes the process: its folder, its logging.

    Args:
        path: The config file, somewhere below a folder named ``.mim``: configs name others from
            there.
        done: Earlier results by digest; a config with the same model takes over that result.
        progress: Called with the unfinished record before each step.

    Returns:
        A record for JSON. ``status`` is 'ok', or names the step that failed: 'load', 'build',
        'switch', 'build_sn', 'step'; 'no_model' and 'no_norm' say why no step is possible.
    """
    os.chdir(next(folder for folder in path.parents if folder.name == '.mim'))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter('ignore')
    start = time.process_time()
    record: dict[str, Any] = {}
    try:
        for status in _steps(path, record, done):
            record['status'] = status
            progress(record)
    except Exception as error:
        record['error'] = _describe(error)
    record['cpu_s'] = round(time.process_time() - start, 1)
    record['rss_mib'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return record


def _steps(path: Path, record: dict[str, Any], done: dict[str, dict]) -> Iterator[str]:
    """Fills the record, and yields the name of each step before it runs, at the end the outcome."""
    yield 'load'
    cfg = Config.fromfile(path)
    if 'model' not in cfg:
        yield 'no_model'
        return
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    record['digest'] = digest = _digest(cfg)
    record['model'] = _name(cfg.model.type)
    if digest in done:
        record.update({k: v for k, v in done[digest].items() if k not in _OWN_FIELDS})
        record['same_model_as'] = done[digest]['config']
        yield done[digest]['status']
        return
    _leave_out_files(cfg)

    yield 'build'
    record['own_norms'] = _count_norms(_build_quickly(cfg))
    if not record['own_norms']:
        yield 'no_norm'
        return

    yield 'switch'
    switched = Config(cfg._cfg_dict.to_dict(), filename=str(path))
    report = sn_mm.switch_norm_cfg(switched, NORM_CFG, EXTENT)
    record['switched'] = len(report.switched)
    record['left'] = Counter(item.reason for item in report.left)

    yield 'build_sn'
    model = build(switched)
    record['sn_by_config'] = _count_sn(model)
    hard_coded = [name for name, _ in find_unconverted(model, EXTENT)]
    record['converted'], record['converted_examples'] = len(hard_coded), hard_coded[:3]
    convert_unconverted(model, NORM_CFG, EXTENT)
    record['norms_left'] = len(find_unconverted(model, EXTENT))
    record['norms_kept'] = len(find_unconverted(model)) - record['norms_left']

    yield 'step'
    _train_step(model, switched, cfg, record)
    yield 'ok'


def _name(kind: Any) -> str:
    return kind if isinstance(kind, str) else kind.__name__


def _digest(cfg: Config) -> str:
    """A digest of the model without its number of classes and the settings of ``_IRRELEVANT``."""
    parts = [_essence(cfg.model.to_dict()), cfg.get('default_scope'), loads(cfg, 'mask')]
    parts.append(loads(cfg, 'seg'))
    return hashlib.sha1(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:12]


def _essence(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: min(value, 3) if _is_class_count(key, value) else _essence(value)
            for key, value in node.items()
            if key not in _IRRELEVANT
        }
    return [_essence(value) for value in node] if isinstance(node, (list, tuple)) else node


def _is_class_count(key: str, value: Any) -> bool:
    return key.startswith('num_') and key.endswith('classes') and isinstance(value, int)


def _leave_out_files(cfg: Config) -> None:
    """Removes pretrained weights from a config, and limits settings that only cost time."""
    for node in dicts(cfg._cfg_dict.model):
        for key in ('pretrained', 'teacher_ckpt', 'batch_augments'):
            if node.get(key) is not None:
                node[key] = None
        if 'Pretrained' in find(node.get('init_cfg'), 'type'):
            node['init_cfg'] = None
        for key, most in _AT_MOST.items():
            if isinstance(node.get(key), int):
                node[key] = min(node[key], most)


def _build_quickly(cfg: Config) -> nn.Module:
    """Builds without weights where the model's constructor allows that."""
    try:
        return build(cfg, 'meta')
    except Exception:  # of any class: a constructor may read values, which meta lacks
        if not distributed.is_initialized():  # mmcv's SyncBatchNorm needs a group
            distributed.init_process_group(
                'gloo', store=distributed.HashStore(), rank=0, world_size=1
            )
        return build(cfg)


def _count_sn(model: nn.Module) -> int:
    return sum(isinstance(module, sn_mm.SwitchNorm) for module in model.modules())


def _count_norms(model: nn.Module) -> dict[str, int]:
    """Norms of the BatchNorm, GroupNorm and InstanceNorm families by class."""
    return Counter(kind.__name__ for _, kind in find_unconverted(model))


def _train_step(model: nn.Module, switched: Config, cfg: Config, record: dict[str, Any]) -> None:
    """Trains a step with SN, on larger images only where the model's own norms need them too."""
    fixed = (n[0] if isinstance(n, (tuple, list)) else n for n in find(cfg.model, 'img_size'))
    sizes = [*SIZES, *fixed]
    _start(model)
    for size in sizes:
        record['size'] = size
        try:
            record.update(_losses(model, switched, size))
            return
        except Exception as error:
            record['own_step'] = _own_step(cfg, size)
            too_small = isinstance(error, _TOO_SMALL) and record['own_step'] != 'ok'
            if not too_small or size == sizes[-1]:
                raise
        del record['own_step']
        model.zero_grad()


def _start(model: Any) -> None:
    for progress in ('epoch', 'iter'):  # some heads ask how far training is
        MessageHub.get_current_instance().update_info(progress, 0)
    if hasattr(model, 'init_weights'):
        model.init_weights()
    model.train()


def _losses(model: Any, cfg: Config, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    preprocessor = model.data_preprocessor
    if hasattr(preprocessor, 'size') and not preprocessor.size_divisor:  # mmseg pads to it
        preprocessor.size = (size, size)
    data = preprocessor(make_batch(cfg, size), training=True)
    losses = model(**data, mode='loss')
    total, values = model.parse_losses(losses)
    total.backward()
    infinite = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    if not total.isfinite() or infinite:
        raise ArithmeticError(f'loss {float(total)}, gradients not finite: {infinite[:3]}')
    return {'loss': round(float(total), 4), 'losses': len(values) - 1}


def _own_step(cfg: Config, size: int) -> str:
    """Whether the same step works with the config's own norms: 'ok' or the error."""
    try:
        model = build_for_one_process(cfg)
        _start(model)
        _losses(model, cfg, size)
    except Exception as error:
        return _describe(error)
    return 'ok'


def _describe(error: Exception) -> str:
    """The error and the place that it came from, in one line."""
    *_, last = traceback.extract_tb(error.__traceback__)
    where = '/'.join(Path(last.filename).parts[-3:])
    text = ' '.join(str(error).split()).split(', the current sys.path')[0]
    text = re.sub(r'/\S*/(site-packages/)?(\w+/)?\.mim/', '', text)
    return f'{type(error).__name__}: {text[:300]} ({where}:{last.lineno})'
