"""What an optimizer does to the parameters of SN."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import nn

from ..errors import InputError, check_type, some
from ..layer import SwitchNorm
from ..optim import IMPORTANCE

__all__ = ['check_optimizer']


def check_optimizer(
    model: nn.Module,
    *optimizers: torch.optim.Optimizer,
    report: Callable[[str], None] = warnings.warn,
) -> None:
    """Says which parameters of SN an optimizer does not have, or decays.

    Code that sorts the parameters of a model by the classes of its modules does not know SN. It may
    leave the importance out, which then does not learn. Or it may not recognize SN as a norm and
    apply weight decay, which pulls the scopes to equal importance. An optimizer that was built
    before the model was converted does not have the importance either.

    Args:
        model: A model with SN.
        *optimizers: All those of its training, before it begins.
        report: Called with one line for each of: parameters of SN that learn and are in no group;
            importance with weight decay; weights and biases of SN with weight decay where others
            have none. Default: ``warnings.warn``.

    Raises:
        InputError: No optimizer, or an argument of another kind.

    Examples::

        >>> model = sn_mm.convert_switch_norm(model)
        >>> sn_mm.check_optimizer(model, torch.optim.AdamW(model.parameters()))
        UserWarning: weight decay pulls SN's scopes to equal importance: ...
    """
    check_type('model', model, nn.Module, 'a torch.nn.Module')
    if not optimizers:
        raise InputError('check_optimizer needs one optimizer or more')
    for optimizer in optimizers:
        check_type('optimizer', optimizer, torch.optim.Optimizer, 'a torch.optim.Optimizer')
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    decay = {p: group.get('weight_decay') or 0 for group in groups for p in group['params']}
    importance, affine = _parameters(model, IMPORTANCE), _parameters(model, ('weight', 'bias'))
    absent = [name for name, p in {**affine, **importance}.items() if p not in decay]
    if absent:
        report(f'no optimizer has these parameters of SN, so they do not learn: {some(absent)}')
    decayed = [name for name, p in importance.items() if decay.get(p)]
    if decayed:
        report(f"weight decay pulls SN's scopes to equal importance: {some(decayed)}")
    own = {*importance.values(), *affine.values()}
    spared = any(not value for p, value in decay.items() if p not in own)
    decayed = [name for name, p in affine.items() if decay.get(p)]
    if spared and decayed:
        report(f'SN has weight decay, and other parameters have none: {some(decayed)}')


def _parameters(model: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The parameters of these names in SN layers, those that learn, by name in the model."""
    return {
        f'{prefix}.{name}'.lstrip('.'): parameter
        for prefix, layer in model.named_modules()
        if isinstance(layer, SwitchNorm)
        for name in names
        if (parameter := layer._parameters.get(name)) is not None and parameter.requires_grad
    }
