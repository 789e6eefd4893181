"""What stands in a config, and the model that it builds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import nn

from ..switch.nodes import dicts


def find(node: Any, key: str) -> Iterator[Any]:
    """All values under a key, anywhere in nested dictionaries and lists."""
    return (inner[key] for inner in dicts(node) if key in inner)


def build(cfg: Config, device: str = 'cpu') -> nn.Module:
    """Builds from a copy, as building changes the config of some models; the seed is 0."""
    torch.manual_seed(0)
    with torch.device(device):
        return MODELS.build(Config(cfg._cfg_dict.to_dict()).model)


def build_for_one_process(cfg: Config) -> nn.Module:
    """Builds a model in training mode, with BatchNorm for SyncBN, which needs a group."""
    return revert_sync_batchnorm(build(cfg)).train()
