"""How PyTorch looks at a call, and what older versions of it lack.

``torch.compiler.is_compiling()`` and ``is_exporting()`` are flags of the whole process: they are
also true in a thread that runs a layer while another one compiles. So the package asks here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import flop_counter

__all__ = [
    'Look', 'constant_in_graphs', 'is_compiling', 'is_exporting', 'is_exporting_onnx',
    'is_recorded_strictly', 'look_at', 'look_at_backward', 'traceable',
]  # fmt: skip


def _never(*args: object) -> bool:
    return False


# --- What older versions lack; each name goes when its version is no longer supported -------------

# torch < 2.2 has no register of operators' FLOPs.
FLOP_REGISTRY: dict[Any, Callable] = getattr(flop_counter, 'flop_registry', {})
# torch < 2.2 does not tell a batch of gradients (autograd's own batches, older than torch.func's).
_is_batched = getattr(torch._C._functorch, 'is_legacy_batchedtensor', _never)
# torch < 2.4 has no fakes of operators, and no torch.compile of a layer: graphs break there.
HAS_FAKES = hasattr(torch.library.Library, '_register_fake')
_is_dynamo_compiling = getattr(torch.compiler, 'is_dynamo_compiling', _never)
# torch < 2.5 has no tag for operators whose inputs the compiler may lay out as it likes: there it
# may with any operator.
FLEXIBLE_LAYOUT = tuple(
    getattr(torch.Tag, tag) for tag in ('flexible_layout',) if hasattr(torch.Tag, tag)
)
# torch < 2.7 does not tell torch.export from torch.compile: both record ordinary operations, but
# for a synchronized layer, which only the latter takes. Up to 2.12 is_exporting() is true for
# torch.compile as well, but the flag that it reads is not.
_TELLS_EXPORT = hasattr(torch.compiler, '_is_exporting_flag')


def _export_flag() -> bool:
    return torch.compiler._is_exporting_flag


_is_exporting = (
    _export_flag if _TELLS_EXPORT else getattr(torch.compiler, 'is_compiling', _never)
)  # fmt: skip


def _itself(function: Any) -> Any:
    return function


traceable = _itself if HAS_FAKES else torch.compiler.disable
"""Decorates what torch.compile traces; before torch 2.4 it breaks its graph there instead."""


def constant_in_graphs(function: Any) -> Any:
    """Marks what torch.compile calls once, while it traces: its graph has the result alone.

    As ``torch.compiler.assume_constant_result``, which imports the whole compiler, and with it
    doubles the time of an import.
    """
    function._dynamo_marked_constant = True
    return function


# --- How PyTorch looks at a call ------------------------------------------------------------------

is_compiling = _is_dynamo_compiling if HAS_FAKES else _never
"""Whether ``torch.compile`` traces this call."""


class Look(NamedTuple):
    """How PyTorch looks at a call of a layer.

    Attributes:
        compiling: ``torch.compile`` traces it.
        ordinary: It needs ordinary differentiable operations: ``torch.jit.trace``,
            ``torch.export`` or ``torch.onnx`` records it, ``torch.func`` or forward-mode
            differentiation transforms it; in a backward pass also ``create_graph=True`` and
            ``is_grads_batched=True``.
        operators: It must see operators: torch.compile, or a ``TorchDispatchMode`` such as fake
            tensors and FLOP counters.
        recomputing: It is a forward pass inside a backward pass, which is activation
            checkpointing's second one. (In a compiled region there is none.)
        recorded: A graph is recorded, by ``torch.jit.trace``, ``torch.export`` or ``torch.onnx``.
    """

    compiling: bool
    ordinary: bool
    operators: bool
    recomputing: bool
    recorded: bool = False


_PLAIN = Look(False, False, False, False)


def look_at(x: Tensor, synchronized: bool) -> Look:
    """How PyTorch looks at a forward pass of a layer with input ``x``."""
    recorded = _is_recorded(x, synchronized)
    if is_compiling():
        return Look(True, recorded, True, False, recorded)
    operators = torch._C._len_torch_dispatch_stack() > 0
    recomputing = torch._C._current_graph_task_id() != -1
    if recorded or operators or recomputing or _is_transformed():
        ordinary = recorded or _is_transformed()
        return Look(False, ordinary, operators, recomputing, recorded)
    return _PLAIN


def look_at_backward(dy: Tensor) -> Look:
    """How PyTorch looks at a backward pass with the output's gradient ``dy``."""
    if is_compiling():
        return Look(True, False, True, False)
    # With create_graph=True gradients are enabled.
    ordinary = torch.is_grad_enabled() or _is_transformed() or _is_batched(dy)
    return Look(False, ordinary, torch._C._len_torch_dispatch_stack() > 0, False)


def _is_recorded(x: Tensor, synchronized: bool) -> bool:
    if torch.jit.is_tracing():
        return True
    if _is_dynamo_compiling():
        return _is_exporting() and (_TELLS_EXPORT or not synchronized)
    return _is_exporting() and type(x) is not Tensor


def is_exporting() -> bool:
    """Whether ``torch.export`` records; False where that cannot be told from ``torch.compile``."""
    return _is_exporting() and (_TELLS_EXPORT or not _is_dynamo_compiling())


def is_recorded_strictly() -> bool:
    """Whether ``torch.export`` records by torch.compile's tracer, to which open sizes are ints."""
    return is_compiling() and _is_exporting()


def is_exporting_onnx() -> bool:
    """Whether torch's older exporter of ONNX, which traces, records."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
