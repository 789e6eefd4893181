"""The authors' networks and checkpoints, written from the paper and from what is known about them.

One unbiased instance variance feeds all scopes, parameters are (1, C, 1, 1), running statistics
(1, C, 1), there is no counter of batches.
"""

from __future__ import annotations

import re

import reference
import torch
from torch import Tensor, nn

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class TheirNorm(nn.Module):
    def __init__(self, channels: int, using_bn: bool) -> None:
        super().__init__()
        scopes = 3 if using_bn else 2
        self.weight = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)
        self.bias = nn.Parameter(torch.randn(1, channels, 1, 1) * 0.3)
        self.mean_weight = nn.Parameter(torch.randn(scopes))
        self.var_weight = nn.Parameter(torch.randn(scopes))
        if using_bn:
            self.register_buffer('running_mean', torch.randn(1, channels, 1) * 0.3)
            self.register_buffer('running_var', torch.rand(1, channels, 1) + 0.5)

    def forward(self, x):
        names = ('weight', 'bias', 'running_mean', 'running_var')
        given = (getattr(self, name, None) for name in names)
        logits = (self.logits(weight) for weight in (self.mean_weight, self.var_weight))
        return reference.switch_norm(
            [x], *logits, *(None if t is None else t.flatten() for t in given), training=False,
            normalizers=reference.SCOPES[: len(self.mean_weight)], correction=1,
        ).outputs[0].to(x.dtype)  # fmt: skip

    def logits(self, weight):
        if not hasattr(self, 'radius'):
            return weight
        importance = reference.sparsestmax(weight.tolist(), float(self.radius))
        return torch.tensor(importance, dtype=torch.float64).log()

    def become_sparse(self, radius: float) -> None:
        """As their Sparse SN; the importance of the variances is fixed."""
        self.register_buffer('radius', torch.tensor([radius]))
        self.register_buffer('mean_fixed', torch.zeros(1))
        self.register_buffer('var_fixed', torch.ones(1))
        one_hot = torch.eye(len(self.var_weight))[self.var_weight.argmax()]
        self.var_weight.data.copy_(one_hot)


class TheirBlock(nn.Module):
    def __init__(self, inner: int, planes: int, stride: int, deep: bool, using_bn: bool) -> None:
        super().__init__()
        outer = planes * 4 if deep else planes
        self.count = 3 if deep else 2
        kernels = (1, 3, 1) if deep else (3, 3)
        widths = (inner, planes, planes, outer) if deep else (inner, planes, outer)
        for i, kernel in enumerate(kernels, 1):
            step = stride if i == self.count - 1 else 1
            conv = nn.Conv2d(*widths[i - 1 : i + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f'conv{i}', conv)
            self.add_module(f'sn{i}', TheirNorm(widths[i], using_bn))
        self.downsample = None
        if stride > 1 or inner != outer:
            conv = nn.Conv2d(inner, outer, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, TheirNorm(outer, using_bn))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f'sn{i}')(getattr(self, f'conv{i}')(y))
            y = y.relu() if i < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class TheirResNet(nn.Module):
    def __init__(self, depth: int, using_bn: bool = True, width: int = 8) -> None:
        super().__init__()
        deep = depth >= 50
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.sn1 = TheirNorm(width, using_bn)
        inner = width
        for stage, count in enumerate(DEPTHS[depth]):
            planes, blocks = width * 2**stage, []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(TheirBlock(inner, planes, stride, deep, using_bn))
                inner = planes * 4 if deep else planes
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
        self.fc = nn.Linear(inner, 10)

    @torch.no_grad()
    def forward(self, x):
        """The four stages' outputs and the classifier's."""
        x = nn.functional.max_pool2d(self.sn1(self.conv1(x)).relu(), 3, 2, 1)
        stages = []
        for stage in range(1, 5):
            x = getattr(self, f'layer{stage}')(x)
            stages.append(x)
        return [*stages, self.fc(x.mean((2, 3)))]


def as_published(network: nn.Module, naming: str) -> dict[str, torch.Tensor]:
    weights = dict(network.state_dict())
    if naming == 'classification':
        return {f'module.{key}': tensor for key, tensor in weights.items()}
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith('fc.')}
    if naming == 'segmentation':
        return weights
    renamed = {}
    for key, tensor in weights.items():
        stage = re.match(r'layer(\d)\.(.*)', key)
        name = f'res{int(stage[1]) + 1}.{stage[2]}' if stage else f'res1.{key}'
        renamed[f'Conv_Body.conv_body.{name}'] = tensor
    return renamed


@torch.no_grad()
def train(network: TheirResNet, images: Tensor) -> TheirResNet:
    """Gives the weights the scales that training leaves, and collects running statistics.

    Maps are of order 1 and the last norm of each residual block is small, so that rounding is not
    amplified as in networks of random weights.
    """
    norms = [module for module in network.modules() if isinstance(module, TheirNorm)]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out')
        elif isinstance(module, TheirBlock):
            getattr(module, f'sn{module.count}').weight.mul_(0.2)

    def collect(norm: TheirNorm, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].transpose(0, 1).flatten(1)
        norm.running_mean.copy_(channels.mean(1).view(1, -1, 1))
        norm.running_var.copy_(channels.var(1).view(1, -1, 1))

    if hasattr(norms[0], 'running_mean'):
        handles = [norm.register_forward_pre_hook(collect) for norm in norms]
        network(images)
        for handle in handles:
            handle.remove()
    return network.eval()
