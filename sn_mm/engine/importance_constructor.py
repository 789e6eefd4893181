"""Gives the importance of SN a group of its own in an optimizer, whatever builds the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..errors import InputError, check_number, check_type
from ..layer import SwitchNorm
from ..model.replace import replace_modules
from ..optim import IMPORTANCE, has_sparse, importance_parameters, names_importance

LR_MULT = 'importance_lr_mult'
"""Key of the importance's group: the multiple of the learning rate, None until a hook finds it."""

_NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class ImportanceOptimWrapperConstructor:
    """Builds an optimizer by another constructor, and gives the importance a group of its own.

    The other constructor sees a BatchNorm in place of each SN layer, with SN's weight and bias. So
    its rules for norms, by class or by name, hold for SN, and it does not see the importance. The
    importance becomes the last group, without weight decay.

    Args:
        optim_wrapper_cfg: As for the other constructor.
        paramwise_cfg: As for the other constructor, and ``importance``: a dictionary with

            - ``constructor``: the other one. Default: 'DefaultOptimWrapperConstructor'.
            - ``lr_mult``: the learning rate of the importance in units of the optimizer's. Default:
              :class:`sn_mm.engine.hooks.ImportanceHook` computes it from the length of the
              training; without the hook, and for Sparse SN, it is 1.

            Where its ``custom_keys`` name ``mean_weight`` or ``var_weight``, they alone hold: the
            importance goes to the other constructor.

    Raises:
        InputError: ``importance`` has other keys or values; the other constructor builds several
            optimizers.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise = dict(paramwise_cfg or {})
        given = paramwise.pop('importance', {})
        check_type('paramwise_cfg.importance', given, dict, 'a dictionary')
        settings = dict(given)
        kind = settings.pop('constructor', 'DefaultOptimWrapperConstructor')
        self.lr_mult = settings.pop('lr_mult', None)
        if settings:
            raise InputError(
                f'paramwise_cfg.importance takes constructor, lr_mult, got {", ".join(settings)}'
            )
        if self.lr_mult is not None:
            check_number('paramwise_cfg.importance.lr_mult', self.lr_mult, 0)
        self.named_by_user = names_importance(paramwise)
        self.constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
            {
                'type': kind,
                'optim_wrapper_cfg': optim_wrapper_cfg,
                'paramwise_cfg': paramwise or None,
            }
        )

    def __call__(self, model: nn.Module) -> OptimWrapper:
        importance = importance_parameters(model)
        if self.named_by_user or not importance:
            return self.constructor(model)
        with _batch_norms_in_place(model) as seen:
            wrapper = self.constructor(seen)
        if not isinstance(wrapper, OptimWrapper):
            raise InputError(
                f'{type(self.constructor).__name__} builds several optimizers: the importance of '
                'SN has no group of its own there; name it as optim_wrapper.constructor'
            )
        lr_mult = 1 if self.lr_mult is None and has_sparse(model) else self.lr_mult
        rate = wrapper.optimizer.defaults['lr'] * (1 if lr_mult is None else lr_mult)
        group = {'params': importance, 'lr': rate, 'weight_decay': 0.0, LR_MULT: lr_mult}
        if 'param_names' in wrapper.optimizer.param_groups[0]:  # in all groups or in none
            names = {weight: name for name, weight in model.named_parameters()}
            group['param_names'] = [names[weight] for weight in importance]
        wrapper.optimizer.add_param_group(group)
        return wrapper


@contextmanager
def _batch_norms_in_place(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the model with a BatchNorm in the place of each SN layer."""
    stand_ins: dict[nn.Module, nn.Module] = {
        m: _stand_in(m) for m in model.modules() if isinstance(m, SwitchNorm)
    }
    seen = replace_modules(model, stand_ins)
    try:
        yield seen
    finally:
        replace_modules(seen, {new: old for old, new in stand_ins.items()})


def _stand_in(layer: SwitchNorm) -> nn.Module:
    """A BatchNorm with all that a layer has to learn, but the importance."""
    kind = _NORMS[layer._dims[-1]] if layer._dims else nn.BatchNorm2d
    norm = kind(layer.num_features, affine=False, track_running_stats=False)
    norm._parameters = {k: p for k, p in layer._parameters.items() if k not in IMPORTANCE}
    norm._modules = layer._modules
    return norm
