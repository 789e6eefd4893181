"""Switchable Normalization operation by operation, as a reader of the paper would write it.

Luo et al., arXiv 1806.10779, equations 2 to 5, in eager PyTorch: each scope's mean and variance
over its own pixels, gradients by autograd. What SN costs where nothing is done about it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SCOPES = {'in': (2, 3), 'ln': (1, 2, 3), 'bn': (0, 2, 3)}


class PlainSwitchNorm2d(nn.Module):
    """Input and output: (N, C, H, W).

    Args:
        num_features: C.
        eps: Added to the mixed variance.
        momentum: Share of the new batch in the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        means = {k: x.mean(axes, keepdim=True) for k, axes in SCOPES.items()}
        variances = {k: ((x - means[k]) ** 2).mean(a, keepdim=True) for k, a in SCOPES.items()}
        if self.training:
            count = x.numel() / x.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(means['bn'].flatten().float(), self.momentum)
                unbiased = variances['bn'].flatten().float() * count / (count - 1)
                self.running_var.lerp_(unbiased, self.momentum)
        else:
            means['bn'] = self.running_mean[:, None, None]
            variances['bn'] = self.running_var[:, None, None]
        mean = sum(w * m for w, m in zip(self.mean_weight.softmax(0), means.values()))
        var = sum(w * v for w, v in zip(self.var_weight.softmax(0), variances.values()))
        normalized = (x - mean) / torch.sqrt(var + self.eps)
        y = self.weight[:, None, None] * normalized + self.bias[:, None, None]
        return y.to(x.dtype)
