"""Switchable Normalization layers.

Luo et al., *Differentiable Learning-to-Normalize via Switchable Normalization*, ICLR 2019,
arXiv 1806.10779.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.fx import Proxy
from torch.nn.modules.instancenorm import _InstanceNorm

from . import equations
from ._compat import is_compiling
from .distributed import check_group, check_sync, constant_group, resolve_group
from .equations import SCOPES, Parameters, Running, Settings
from .errors import InputError, check_bool, check_positive_int, check_type
from .functional import (
    canonical_normalizers,
    check_correction,
    check_eps,
    check_momentum,
    normalize,
)
from .fusing import GuardedEps
from .sharding import full_weight, placed_as
from .warm_start import FROM_BATCH_NORM, initial_logits

_CHECKED: dict[str, Callable[[Any], None]] = {
    'eps': check_eps,
    'sync': check_sync,
    'process_group': check_group,
    'correction': check_correction,
}
"""Settings that are checked wherever they are set. Any momentum may be set later, as in torch."""


class SwitchNorm(_InstanceNorm):
    r"""Switchable Normalization over (N, C, \*S) with any number of spatial axes.

    Mixes instance (in), layer (ln) and minibatch (bn) statistics by their importance, which each
    layer learns: one softmax for the means and one for the variances (arXiv 1806.10779, equations
    3 to 5):

    .. math::
        y = \gamma \frac{x - \sum_k p_k \mu_k}{\sqrt{\sum_k q_k \sigma_k^2 + \epsilon}} + \beta

    Args:
        num_features: C of the input.
        eps: Added to the mixed variance. Default: 1e-5.
        momentum: Share of the new batch in the running statistics; None for a cumulative average.
            Default: 0.1.
        affine: Learn ``weight`` and ``bias`` per channel. Default: True.
        track_running_stats: Keep running statistics of the batch scope for evaluation, as
            ``nn.BatchNorm2d`` does. False: evaluation takes them from the batch at hand.
            Without 'bn' in ``normalizers`` nothing is tracked. Default: True.
        normalizers: The scopes to mix, one or more of 'in', 'ln', 'bn'. Default: all three.
        sync: Pool the batch scope in training over all ranks (True), over groups of k consecutive
            ranks (k), or not (False). Local where torch.distributed is not initialized.
            Default: True.
        process_group: The ranks that ``sync=True`` pools over. Default: all.
        correction: 0 for the paper's biased instance variance, 1 for the unbiased one of the
            authors' released code (for their checkpoints). Default: 0.
        init_importance: The importance to start from, the same for means and for variances.
            Default: None. docs/use/training.md measures them all.

            - None: equal. Where weights of a BatchNorm are loaded it becomes ``{'bn': 0.9}``, or
              'bn' if the logits are frozen by then.
            - 'equal': equal, whatever is loaded.
            - A scope: all but 1e-7 on it. A network whose BatchNorm weights are loaded keeps its
              function with 'bn', but the importance hardly moves from there.
            - A mapping such as ``{'bn': 0.9}``: these, and the rest equally among the other scopes.
              The function of a loaded network changes, and the importance moves.
        device, dtype: Of the parameters and buffers.
        bias: False leaves ``bias`` out where ``affine`` is True. Default: True.

    Attributes:
        weight, bias: (C,), initialized to 1 and 0; None where they are left out.
        mean_weight, var_weight: (K,), the logits in the order in, ln, bn, whose softmax is the
            importance. Initialized to 1, or so that their softmax is ``init_importance``.
        running_mean, running_var, num_batches_tracked: As ``nn.BatchNorm2d``'s.
        sync_name: The layer's name in its model, for errors: :func:`sn_mm.name_layers` sets it.

    Shape:
        - Input: (N, C, \*S). With one position per channel (S all ones, or (N, C)) an instance
          has no statistics of its own: the softmax is taken over the other scopes.
        - Output: as the input, with its dtype and memory format.

    Raises:
        InputError: Arguments that are not allowed; input of another shape. A ValueError.
        DtypeError: Input that is not floating point. An InputError and a TypeError.

    Examples::

        >>> norm = SwitchNorm(64)
        >>> y = norm(torch.randn(2, 64, 32, 32))
        >>> norm.importance()['mean']
        {'in': 0.333..., 'ln': 0.333..., 'bn': 0.333...}

    MMEngine, MMCV and the toolboxes recognize it as a norm because it is an ``_InstanceNorm``. Code
    that freezes, fuses or converts ``_BatchNorm`` by its class ignores it. ``_abbr_`` gives modules
    the names that they have with BatchNorm ('bn1' ...), so that BatchNorm checkpoints load.
    """

    _abbr_ = 'bn'
    # A cast, as TorchScript of torch 2.1 fails on an annotation that is a text.
    _dims = cast('tuple[int, ...] | None', None)
    sync_name = ''
    _lost_group = False
    __jit_unused_properties__ = ('eps',)  # TorchScript reads the attribute

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        normalizers: Iterable[str] = SCOPES,
        sync: bool | int = True,
        process_group: ProcessGroup | None = None,
        correction: int = 0,
        init_importance: str | Mapping[str, float] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        normalizers = canonical_normalizers(normalizers)
        check_positive_int('num_features', num_features)
        check_momentum(momentum)
        switches = ('affine', affine), ('track_running_stats', track_running_stats), ('bias', bias)
        for name, value in switches:
            check_bool(name, value)
        if dtype is not None and not getattr(dtype, 'is_floating_point', False):
            raise InputError(f'dtype must be a floating-point torch.dtype, got {dtype!r}')
        if process_group is not None and sync is not True:
            raise InputError(f'process_group needs sync=True, got sync={sync!r}')
        logits = self._initial_logits(init_importance, normalizers)
        super().__init__(
            num_features,
            eps,
            momentum,  # type: ignore[arg-type]
            affine,
            track_running_stats and 'bn' in normalizers,
            device=device,
            dtype=dtype,
        )
        self.normalizers = normalizers
        self.sync = sync
        self.process_group = process_group
        self.correction = correction
        given = init_importance  # a config's own dictionary would follow the layer into pickles
        self.init_importance = dict(given) if isinstance(given, Mapping) else given
        if affine and not bias:
            self.register_parameter('bias', None)
        self.mean_weight = nn.Parameter(torch.tensor(logits, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.tensor(logits, device=device, dtype=dtype))

    def __setattr__(self, name: str, value: Any) -> None:
        """Checks settings wherever they are set, in the constructor and later on.

        The scopes of a layer stay: its logits, in their order, are of these.

        Raises:
            InputError: A value that the constructor refuses, or other scopes in ``normalizers``.
        """
        if name == 'normalizers':
            value = canonical_normalizers(value)
            scopes = self.__dict__.get('normalizers', value)
            if value != scopes:
                raise InputError(f'normalizers stay those of the new layer, {scopes}, got {value}')
        elif name in _CHECKED:
            _CHECKED[name](value)
        super().__setattr__(name, value)

    @property
    def eps(self) -> float:
        """Added to the mixed variance; refuses to be added to a running one."""
        return GuardedEps(self.__dict__['eps'])

    @eps.setter
    def eps(self, value: float) -> None:
        self.__dict__['eps'] = float(value)

    def reset_parameters(self) -> None:
        """Resets the running statistics, ``weight``, ``bias`` and the importance."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, 'var_weight'):  # not yet while nn.Module's constructor runs
            self._set_importance(self.init_importance)

    def take_over_batch_norm(self) -> None:
        """Starts the importance anew, for a layer that has been given weights of a BatchNorm.

        Loading a checkpoint and :func:`sn_mm.convert_switch_norm` call it by themselves.
        The new importance is that of ``init_importance``. Without one it is ``{'bn': 0.9}``, or
        'bn' where the logits are frozen by then, or equal in a layer that has no other scope beside
        'bn', or no 'bn'.
        """
        importance = self.init_importance
        if importance is None and 'bn' in self.normalizers and len(self.normalizers) > 1:
            importance = FROM_BATCH_NORM if self.mean_weight.requires_grad else 'bn'
        self._set_importance(importance)

    _initial_logits = staticmethod(initial_logits)

    def _set_importance(self, importance: str | Mapping[str, float] | None) -> None:
        logits = torch.tensor(self._initial_logits(importance, self.normalizers), device='cpu')
        with torch.no_grad():
            for weight in (self.mean_weight, self.var_weight):
                weight.copy_(placed_as(weight, logits))

    def importance(self) -> dict[str, dict[str, float]]:
        """The learned importance of each scope: the softmax of the logits.

        Where FSDP2 shards them, every rank must ask.

        Returns:
            ``{'mean': {'in': ..., 'ln': ..., 'bn': ...}, 'var': {...}}``, each summing to 1.

        Raises:
            InputError: FSDP1 shards the weights, outside of its ``summon_full_params``.
        """
        weights = self.mean_weight, self.var_weight
        full = (full_weight(w.detach(), len(self.normalizers)) for w in weights)
        return {
            statistic: dict(zip(self.normalizers, logits.float().softmax(0).tolist()))
            for statistic, logits in zip(('mean', 'var'), self._softmax_logits(*full))
        }

    def _softmax_logits(self, mean_weight: Tensor, var_weight: Tensor) -> tuple[Tensor, Tensor]:
        """The logits whose softmax is the importance: a subclass may map them to it otherwise."""
        return mean_weight, var_weight

    def _logits(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_softmax_logits` of the layer's own for this input."""
        return self.mean_weight, self.var_weight

    def forward(self, input: Tensor) -> Tensor:
        return self._normalize(input)

    def _normalize(self, input: Tensor) -> Tensor:
        # As in BatchNorm, the attribute set to False later on stops the tracking.
        tracks = self.track_running_stats or not self.training
        if torch.jit.is_scripting():
            mean_weight, var_weight = self._logits(input)
            return equations.switch_norm(
                input,
                mean_weight,
                var_weight,
                self.running_mean if tracks else None,
                self.running_var if tracks else None,
                self.weight,
                self.bias,
                self.training,
                self.momentum,
                self.eps,
                list(self.normalizers),
                self.correction,
                self.num_batches_tracked,
                self.training,
            )
        if isinstance(input, Proxy):  # a leaf for torch.fx, as torch's own norms are
            name = input.tracer.path_of_module(self)
            if not name:
                raise InputError('torch.fx needs a model around an SN layer: nn.Sequential(layer)')
            return input.tracer.create_proxy('call_module', name, (input,), {})
        self._check_input_dim(input)
        weight, bias, mean, var, batches = _attributes(
            self, 'weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'
        )
        running = None
        if tracks and mean is not None and var is not None:
            running = Running(mean, var, batches, self.momentum)
        return normalize(
            input,
            Parameters(*self._logits(input), weight, bias),
            running,
            self.training or running is None,
            Settings(self.normalizers, self.__dict__['eps'], self.correction),
            self._group() if self.training else None,
            '' if is_compiling() else self.sync_name,  # each name would compile a block anew
        )

    def __prepare_scriptable__(self) -> SwitchNorm:
        """Removes our own hooks before TorchScript compiles the layer, and refuses collectives.

        Raises:
            InputError: The layer trains, synchronized over ranks.
        """
        if self.training and self._group() is not None:
            raise InputError(
                'TorchScript takes layers with sync=False in training, and this one is '
                'synchronized over ranks'
            )
        for key, hook in list(self._forward_hooks.items()):
            if getattr(hook, 'eager_only', False):
                del self._forward_hooks[key]
        return self

    def _group(self) -> ProcessGroup | None:
        if 'bn' not in self.normalizers:
            return None
        resolve = constant_group if is_compiling() else resolve_group
        group = resolve(self.sync, self.process_group)
        if self._lost_group and group is not None and self.process_group is None:
            self._lost_group = False
            warnings.warn(
                f'{self.sync_name or type(self).__name__} had a process_group, which a pickle does '
                'not hold, and pools over all ranks now: set its attribute process_group',
                stacklevel=2,
            )
        return group

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        of_batch_norm = self._is_of_batch_norm(state_dict, prefix)  # before tensors are assigned
        # Past _InstanceNorm's own, which fails on any file older than its running statistics: a
        # BatchNorm's statistics are merely unexpected where this layer keeps none.
        super(_InstanceNorm, self)._load_from_state_dict(state_dict, prefix, *args)
        if f'{prefix}radius' in state_dict and 'radius' not in self._buffers:
            errors = args[-1]
            errors.append(f'{prefix[:-1] or "the layer"} is of Sparse SN in the file, and SN here')
        if of_batch_norm:
            self.take_over_batch_norm()

    def _is_of_batch_norm(self, state_dict: Mapping[str, Tensor], prefix: str) -> bool:
        """Whether the weights are a BatchNorm's, without an importance.

        They come whole then: statistics alone may be a part of SN's own state.
        """
        given = partial(self._is_given, state_dict, prefix)
        whole = ('running_mean', 'weight') if self.affine else ('running_mean',)
        return all(map(given, whole)) and not any(map(given, ('mean_weight', 'var_weight')))

    def _is_given(self, state_dict: Mapping[str, Tensor], prefix: str, name: str) -> bool:
        """Whether the file has this tensor of the layer.

        Where it has none, torch.distributed.checkpoint puts the layer's own.
        """
        value = state_dict.get(prefix + name)
        return value is not None and value is not getattr(self, name, None)

    def __getstate__(self) -> dict[str, Any]:
        """Process groups belong to a running job: they are not pickled."""
        lost = self._lost_group or self.process_group is not None
        return {**self._state(), 'process_group': None, '_lost_group': lost}

    def _state(self) -> dict[str, Any]:
        """All but the compiled forward of ``Module.compile``, which belongs to this very layer."""
        return {k: v for k, v in self.__dict__.items() if k != '_compiled_call_impl'}

    def __copy__(self) -> SwitchNorm:
        """Copies pool over the same process group."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self._state())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> SwitchNorm:
        """Copies pool over the same process group."""
        memo[id(self.process_group)] = self.process_group
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self._state(), memo))
        return twin

    def _check_input_dim(self, input: Tensor) -> None:
        check_type('input', input, Tensor, 'a tensor')
        # Not `in`, which torch.compile of torch 2.4 gets wrong where it takes sizes as variables.
        allowed = self._dims is None or self._dims[0] <= input.dim() <= self._dims[-1]
        if not allowed or input.dim() < 2 or input.shape[1] != self.num_features:
            layouts = {2: '(N, C)', 3: '(N, C, L)', 4: '(N, C, H, W)', 5: '(N, C, D, H, W)'}
            wanted = ' or '.join(layouts[d] for d in self._dims) if self._dims else '(N, C, *S)'
            raise InputError(
                f'{type(self).__name__} needs input of shape {wanted} with C = '
                f'{self.num_features}, got {tuple(map(int, input.shape))}'
            )

    def extra_repr(self) -> str:
        shown = (
            f'{self.num_features}, eps={self.eps}, momentum={self.momentum}, '
            f'affine={self.affine}, track_running_stats={self.track_running_stats}, '
            f'normalizers={self.normalizers}, sync={self.sync}'
        )
        if self.affine and self.bias is None:
            shown += ', bias=False'
        for name in ('correction', 'init_importance'):
            if getattr(self, name):
                shown += f', {name}={getattr(self, name)!r}'
        return shown


def _attributes(layer: nn.Module, *names: str) -> list[Any]:
    """Parameters and buffers by name; ``nn.Module`` takes half a microsecond to find each."""
    parameters, buffers = layer._parameters, layer._buffers
    return [
        parameters[name] if name in parameters
        else buffers[name] if name in buffers
        else getattr(layer, name)  # as where a weight is pruned or parametrized
        for name in names
    ]  # fmt: skip


class SwitchNorm1d(SwitchNorm):
    r"""Switchable Normalization over a batch of vectors or sequences.

    Arguments, attributes and errors are those of :class:`SwitchNorm`.

    Shape:
        - Input: (N, C) or (N, C, L). For (N, C) and for L = 1 the softmax is taken over the
          scopes but 'in', the paper's form for one dimension.
        - Output: as the input.

    Examples::

        >>> y = SwitchNorm1d(64)(torch.randn(8, 64))
    """

    _dims = (2, 3)


class SwitchNorm2d(SwitchNorm):
    r"""Switchable Normalization over a batch of images.

    Arguments, attributes and errors are those of :class:`SwitchNorm`.

    Shape:
        - Input: (N, C, H, W). With H = W = 1 the softmax is taken over the scopes but 'in'.
        - Output: as the input, with its dtype and memory format.

    Examples::

        >>> y = SwitchNorm2d(64)(torch.randn(2, 64, 32, 32))
    """

    _dims = (4,)


class SwitchNorm3d(SwitchNorm):
    r"""Switchable Normalization over a batch of volumes or clips.

    Arguments, attributes and errors are those of :class:`SwitchNorm`.

    Shape:
        - Input: (N, C, D, H, W). With D = H = W = 1 the softmax is taken over the scopes but
          'in'.
        - Output: as the input, with its dtype and memory format.

    Examples::

        >>> y = SwitchNorm3d(64)(torch.randn(2, 64, 4, 16, 16))
    """

    _dims = (5,)
