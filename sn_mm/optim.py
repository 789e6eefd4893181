"""The importance of SN in an optimizer: a group of its own, with the learning rate that it needs.

The logits of the importance have no scale in common with other parameters: the importance changes
when a logit moves by about 1, in a training of 200 steps as in one of 200,000. At the learning
rate of the others they stay where they are in all but long trainings (docs/use/training.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .errors import InputError, check_number, check_positive_int, check_type
from .layer import SwitchNorm
from .sparse import SPARSE

__all__ = ['importance_lr', 'importance_parameters', 'parameter_groups', 'travel_of']

IMPORTANCE = ('mean_weight', 'var_weight')
"""The parameters of a layer that are its importance."""

ADAM_TRAVEL = 12.0
"""Learning rate times steps of the importance, with Adam's family. A step moves a logit by at most
the learning rate, so that it bounds the way of a logit; schedules leave about half of it."""

SGD_TRAVEL = 4000.0
"""The same with SGD, whose step is the gradient times the learning rate, for momentum 0. It is no
bound: gradients of the logits are of 1e-4 to 1e-2, by layer and model."""

FEWEST_STEPS = 50
"""Shorter trainings, which are trials, take the learning rate of this many steps."""


def names_importance(paramwise_cfg: Mapping[str, Any]) -> bool:
    """Whether the custom keys of MMEngine's ``paramwise_cfg`` name the importance."""
    keys = paramwise_cfg.get('custom_keys') or ()
    return any(name in key for name in IMPORTANCE for key in keys)


def importance_lr(lr: float, steps: int, travel: float = ADAM_TRAVEL) -> float:
    """The learning rate of the importance for a training of so many steps.

    Args:
        lr: That of the other parameters, at its peak.
        steps: Steps of the optimizer in the whole training.
        travel: Learning rate times steps. Default: that of Adam's family.

    Returns:
        ``travel / steps``, or ``lr`` where that is larger, as in the paper's long trainings.
    """
    return max(lr, travel / max(steps, FEWEST_STEPS))


def travel_of(optimizer: torch.optim.Optimizer) -> float | None:
    """The ``travel`` of :func:`importance_lr` for an optimizer.

    Returns:
        By the optimizer's defaults: Adam's family has ``betas``; SGD counts each gradient
        1 / (1 - momentum) times. None for another optimizer, for which none was measured.
    """
    if 'betas' in optimizer.defaults:
        return ADAM_TRAVEL
    if isinstance(optimizer, torch.optim.SGD):
        return SGD_TRAVEL * (1 - optimizer.defaults['momentum'])
    return None


def importance_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The logits of all SN layers that learn, each once.

    FSDP1 with ``use_orig_params=False`` leaves none: they are in its flat parameters.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SwitchNorm)]
    weights = (layer._parameters.get(name) for layer in layers for name in IMPORTANCE)
    return [p for p in dict.fromkeys(weights) if p is not None and p.requires_grad]


def has_sparse(model: nn.Module) -> bool:
    """Whether a model has layers of Sparse SN, whose logits choose a scope 1 away from the others.

    They learn at the learning rate of the other parameters; that of SN was no better in the study.
    """
    return any(isinstance(module, tuple(SPARSE.values())) for module in model.modules())


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    steps: int,
    momentum: float | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, in which the importance of SN learns.

    Args:
        model: Any model with SN.
        lr: The learning rate, at its peak where a schedule follows. A schedule of torch scales
            all groups.
        weight_decay: Of all parameters but those of SN, which the paper leaves out. Default: 0.
        steps: Steps of the optimizer in the whole training: batches times epochs, divided by the
            batches that one step accumulates.
        momentum: None for Adam's family (AdamW, NAdam, Lion ...); for SGD its momentum, 0 if it
            has none. Default: None.

    Returns:
        Three groups. The first has all other parameters, the second the weights and biases of SN,
        the third its importance. In a model with Sparse SN, whose logits go a shorter way, the
        third group has the learning rate ``lr``. Parameters that do not require gradients are
        left out.

    Raises:
        InputError: The model has no SN, or an argument is outside what is allowed.

    Examples::

        >>> groups = sn_mm.parameter_groups(model, lr=1e-3, weight_decay=0.01, steps=2000)
        >>> optimizer = torch.optim.AdamW(groups)
        >>> groups = sn_mm.parameter_groups(model, lr=0.02, steps=2000, momentum=0.9)
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    """
    check_type('model', model, nn.Module, 'a torch.nn.Module')
    check_number('lr', lr, 0)
    check_number('weight_decay', weight_decay, 0)
    check_positive_int('steps', steps)
    if momentum is not None:
        check_number('momentum', momentum, 0, 1)
    norms = [module for module in model.modules() if isinstance(module, SwitchNorm)]
    if not norms:
        raise InputError('model has no SN layer: convert it before its parameters are grouped')
    importance = importance_parameters(model)
    affine = [p for n in norms for p in (n.weight, n.bias) if p is not None and p.requires_grad]
    own = dict.fromkeys([*affine, *importance])
    others = [p for p in model.parameters() if p.requires_grad and p not in own]
    travel = ADAM_TRAVEL if momentum is None else SGD_TRAVEL * (1 - momentum)
    rate = lr if has_sparse(model) else importance_lr(lr, steps, travel)
    return [
        {'params': others, 'lr': lr, 'weight_decay': weight_decay},
        {'params': list(dict.fromkeys(affine)), 'lr': lr, 'weight_decay': 0.0},
        {'params': importance, 'lr': rate, 'weight_decay': 0.0},
    ]
