"""Synchronized layers in a process group of one rank: the collectives' cost without a network.

In such a group ``nn.SyncBatchNorm`` and SN take their local paths, as there is nobody to meet. The
layers here take the synchronized ones, collectives included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as _SyncBatchNorm

from .. import SwitchNorm2d
from ..distributed import CHECKED_CALLS
from ..functional import switch_norm


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """The default process group, of this process alone: nccl on a GPU, gloo elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        backend = 'nccl' if device.type == 'cuda' else 'gloo'
        # A file, not a port, which another process may take.
        dist.init_process_group(backend, init_method=f'file://{folder}/store', rank=0, world_size=1)
        try:
            _end_checks(device)
            yield
        finally:
            dist.destroy_process_group()


def _end_checks(device: torch.device) -> None:
    """Calls the collectives until, on a GPU, SN no longer compares the ranks before each."""
    layer, x = SynchronizedSwitchNorm2d(1).to(device), torch.zeros(1, 1, 2, 2, device=device)
    with torch.no_grad():
        for _ in range(CHECKED_CALLS):
            layer(x)


class SynchronizedSwitchNorm2d(SwitchNorm2d):
    """SN whose batch scope goes through the collectives even in a group of one rank."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return switch_norm(
            input,
            self.mean_weight,
            self.var_weight,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=True,
            momentum=self.momentum,
            eps=self.eps,
            normalizers=self.normalizers,
            correction=self.correction,
            process_group=dist.group.WORLD,
            num_batches_tracked=self.num_batches_tracked,
        )


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """``nn.SyncBatchNorm`` that synchronizes even in a group of one rank; training on CUDA only."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return _SyncBatchNorm.apply(
            input,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.eps,
            self.momentum,
            dist.group.WORLD,
            1,
        )
