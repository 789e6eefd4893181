"""Ready-made configs of the toolboxes, switched and built."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from sn_mm.cli.config import locate_config


def load(name: str) -> Config:
    """A config that ships in a toolbox, without the weights that it would download."""
    cfg = Config.fromfile(locate_config(name))
    for key in ('pretrained', 'teacher_ckpt'):
        if key in cfg.model:
            cfg.model[key] = None
    return cfg


def build(cfg: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return MODELS.build(copy.deepcopy(cfg.model))


def dump_and_load(cfg: Config, folder: Path) -> Config:
    cfg.dump(folder / 'dumped.py')
    return Config.fromfile(folder / 'dumped.py')


def norms(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if hasattr(m, 'running_var')}


def types(value: Any, path: str = 'model') -> dict[str, str]:
    """The type of each norm_cfg in a config by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = {}
    for key, item in items:
        if str(key).endswith('norm_cfg') and item is not None:
            found[f'{path}.{key}'] = item['type']
        elif isinstance(item, (dict, list, tuple)):
            found.update(types(item, f'{path}.{key}'))
    return found
