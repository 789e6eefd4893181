"""Sparse Switchable Normalization: each layer ends as one norm.

Shao et al., *SSN: Learning Sparse Switchable Normalization via SparsestMax*, CVPR 2019,
arXiv 1903.03793.
"""

# No postponed annotations: TorchScript reads those of the buffers.
import warnings
from collections.abc import Mapping
from numbers import Real
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ._compat import is_exporting_onnx
from .equations import is_open, known_when_run, stats_dtype
from .errors import InputError, check_type
from .layer import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from .norm_act import SwitchNormAct
from .sharding import full_weight, placed_as
from .sparsestmax import sparsest_logits, sparsestmax
from .warm_start import initial_importance

__all__ = [
    'SPARSE',
    'SparseSwitchNorm',
    'SparseSwitchNorm1d',
    'SparseSwitchNorm2d',
    'SparseSwitchNorm3d',
    'SparseSwitchNormAct',
    'set_radius',
]


class _Sparse(SwitchNorm):
    """What is sparse about a layer: the map from its logits to the importance."""

    radius: Tensor
    mean_fixed: Tensor
    var_fixed: Tensor
    _batches_before = 0  # training began, or weights were loaded

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        free = torch.zeros_like(self.mean_weight.detach(), dtype=torch.float32)
        self.register_buffer('radius', free.new_zeros(()))
        # No index: averages of weights take the mean of buffers too, and that is another index.
        self.register_buffer('mean_fixed', free)
        self.register_buffer('var_fixed', free.clone())

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, 'var_fixed'):  # not yet while the constructor runs
            for buffer in (self.radius, self.mean_fixed, self.var_fixed):
                buffer.zero_()

    @staticmethod
    def _initial_logits(
        init_importance: Optional[Union[str, Mapping[str, float]]], normalizers: tuple[str, ...]
    ) -> list[float]:
        """The sparsemax of an importance is itself; an equal one is written as ones, as in SN."""
        importance = initial_importance(init_importance, normalizers)
        if isinstance(init_importance, str) and init_importance in normalizers:
            return [float(scope == init_importance) for scope in normalizers]
        return [1.0] * len(importance) if len(set(importance)) == 1 else importance

    def _softmax_logits(
        self, mean_weight: Tensor, var_weight: Tensor, one_position: bool = False
    ) -> tuple[Tensor, Tensor]:
        logits = sparsest_logits(
            torch.stack([mean_weight, var_weight]),
            self.radius,
            torch.stack([self.mean_fixed, self.var_fixed]),
            one_position and self.normalizers[0] == 'in',
        )
        return logits[0], logits[1]

    def _logits(self, input: Tensor) -> tuple[Tensor, Tensor]:
        positions = 1
        for size in input.shape[2:]:
            positions = positions * size
        if torch.jit.is_scripting():
            return self._softmax_logits(self.mean_weight, self.var_weight, positions == 1)
        if not is_open(positions):
            return self._logits_at(positions == 1)
        one = known_when_run(positions, self.mean_weight) == 1
        alone, usual = self._logits_at(True), self._logits_at(False)
        return torch.where(one, alone[0], usual[0]), torch.where(one, alone[1], usual[1])

    def _logits_at(self, one_position: bool) -> tuple[Tensor, Tensor]:
        mean, var = self._softmax_logits(self.mean_weight, self.var_weight, one_position)
        return (mean.data, var.data) if is_exporting_onnx() else (mean, var)  # numbers in the file

    def train(self, mode: bool = True) -> '_Sparse':
        """Warns where training ends and nothing has raised the radius."""
        trained = self.training and not mode and self._batches() > self._batches_before
        if trained and self.radius == 0:
            warnings.warn(
                'layers of Sparse SN have seen batches with radius 0, with which no importance '
                'need become one-hot: SparseSwitchHook in custom_hooks raises it, or '
                'sn_mm.set_radius(model, progress) in each iteration',
                stacklevel=2,
            )
        super().train(mode)
        if mode:
            self._batches_before = self._batches()
        return self

    def _batches(self) -> int:
        """How many batches the layer has seen; 0 where that is not tracked or has no value yet."""
        batches = self.num_batches_tracked
        return int(batches) if type(batches) is Tensor and not batches.is_meta else 0

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        importance, radius = (
            self._is_given(state_dict, prefix, name) for name in ('mean_weight', 'radius')
        )
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._batches_before = self._batches()
        if importance and not radius:  # SN's logits, of a softmax, which becomes the start here
            for name in ('mean_weight', 'var_weight'):
                weight = getattr(self, name)
                full = full_weight(weight.detach(), len(self.normalizers))
                start = placed_as(weight, full.softmax(0))
                if args[0].get('assign_to_params_buffers'):  # the weight is the file's own
                    setattr(self, name, nn.Parameter(start, weight.requires_grad))
                else:
                    weight.data.copy_(start)


class SparseSwitchNorm(_Sparse, SwitchNorm):
    r"""Sparse Switchable Normalization over (N, C, \*S) with any number of spatial axes.

    :class:`SwitchNorm` whose importance is the sparsestmax of the logits in place of their softmax
    (:func:`sn_mm.sparsestmax.sparsestmax`; arXiv 1903.03793, section 3). Its ``radius`` grows with
    training, from 0 to 1. Then each layer is one norm for the means and one for the variances, and
    :func:`sn_mm.revert_switch_norm` makes it torch's own where the two are the same.

    Arguments, shapes and errors are those of :class:`SwitchNorm`. ``init_importance='bn'`` puts all
    on the scope, and the importance then does not move.

    Attributes:
        radius: Scalar, which :func:`sn_mm.set_radius` or SparseSwitchHook raise.
        mean_fixed, var_fixed: (K,), zeros until the importance is one-hot, and that importance from
            then on. Its logits then get no gradient.

    Weights of SN load with SN's importance as the start, those of a BatchNorm with
    ``{'bn': 0.9}`` as in SN.
    """


class SparseSwitchNorm1d(_Sparse, SwitchNorm1d):
    """:class:`SparseSwitchNorm` over (N, C) or (N, C, L)."""


class SparseSwitchNorm2d(_Sparse, SwitchNorm2d):
    """:class:`SparseSwitchNorm` over (N, C, H, W)."""


class SparseSwitchNorm3d(_Sparse, SwitchNorm3d):
    """:class:`SparseSwitchNorm` over (N, C, D, H, W)."""


class SparseSwitchNormAct(_Sparse, SwitchNormAct):
    """:class:`SparseSwitchNorm`, then a drop layer and an activation."""


SPARSE: dict[type[SwitchNorm], type[SwitchNorm]] = {
    SwitchNorm: SparseSwitchNorm,
    SwitchNorm1d: SparseSwitchNorm1d,
    SwitchNorm2d: SparseSwitchNorm2d,
    SwitchNorm3d: SparseSwitchNorm3d,
    SwitchNormAct: SparseSwitchNormAct,
}
"""The sparse layer for each layer of SN."""


@torch.no_grad()
def set_radius(model: nn.Module, progress: float) -> None:
    """Sets the radius of all Sparse SN layers, and fixes the importance that is one-hot by then.

    Call it before each iteration. It does not wait for the device.

    Args:
        model: Any module. Without a Sparse SN layer nothing happens.
        progress: The share of the training that is done, 0 to 1: the radius.

    Raises:
        InputError: ``model`` is not a module, or ``progress`` outside of [0, 1].
    """
    check_type('model', model, nn.Module, 'a torch.nn.Module')
    if not isinstance(progress, Real) or not 0 <= progress <= 1:
        raise InputError(f'progress must be a number from 0 to 1, got {progress!r}')
    layers = [module for module in model.modules() if isinstance(module, _Sparse)]
    for layer in layers:
        layer.radius.fill_(progress)
    # Layers of one kind at once: a network has dozens of them.
    groups: dict[Any, list[_Sparse]] = {}
    for layer in layers:
        key = len(layer.normalizers), layer.mean_weight.device, layer.mean_weight.dtype
        groups.setdefault(key, []).append(layer)
    for (scopes, *_), alike in groups.items():
        weights = [w for layer in alike for w in (layer.mean_weight, layer.var_weight)]
        fixed = [f for layer in alike for f in (layer.mean_fixed, layer.var_fixed)]
        logits = torch.stack([full_weight(w, scopes) for w in weights])
        logits = logits.to(stats_dtype(logits.dtype))
        importance = sparsestmax(logits, alike[0].radius.to(logits.dtype))
        left = importance > 0
        known = torch.stack(fixed)
        found = (left.sum(1, keepdim=True) == 1) & ~known.any(1, keepdim=True)
        for buffer, one_hot in zip(fixed, torch.where(found, left.to(known.dtype), known)):
            buffer.copy_(one_hot)
