"""Whether PyTorch runs, compiles, records or transforms the current call.

The whole package asks here. ``torch.compiler.is_compiling()`` and ``is_exporting()`` are flags of
the whole process: they are also true in a thread that runs a layer while another one compiles.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    'is_batched', 'is_compiling', 'is_exporting', 'is_transformed', 'is_watched', 'traceable',
]  # fmt: skip


def _never() -> bool:
    return False


# Before torch 2.4 operators have no fakes.
_has_fakes = hasattr(torch.library.Library, '_register_fake')
_dynamo_traces = getattr(torch.compiler, 'is_dynamo_compiling', _never)
# torch < 2.7 does not tell torch.export from torch.compile: both record ordinary operations, but
# for a synchronised layer, which only the latter takes.
# Up to 2.12 is_exporting() is true for torch.compile as well, but what it reads is not.
_tells_export = hasattr(torch.compiler, '_is_exporting_flag')


def _flag() -> bool:
    return torch.compiler._is_exporting_flag


_exports = _flag if _tells_export else getattr(torch.compiler, 'is_compiling', _never)
_transforms = getattr(
    torch._C,
    '_are_functorch_transforms_active',
    lambda: torch._C._functorch.maybe_current_level() is not None,
)
# That of autograd's own batches, older than torch.func's. (torch 2.1 does not tell.)
_is_batched = getattr(torch._C._functorch, 'is_legacy_batchedtensor', lambda tensor: False)

traceable = torch.compiler.disable if not _has_fakes else lambda function: function
"""Decorates what torch.compile traces; before torch 2.4 it breaks its graph there instead."""

is_compiling = _dynamo_traces if _has_fakes else _never
"""Whether ``torch.compile`` traces this call."""


def is_exporting(x: Tensor, synchronised: bool) -> bool:
    """Whether ``torch.jit.trace``, ``torch.export`` or ``torch.onnx`` (by one of them) record."""
    if torch.jit.is_tracing():
        return True
    if _dynamo_traces():
        return _exports() and (_tells_export or not synchronised)
    return _exports() and type(x) is not Tensor


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation, which want ordinary operations."""
    return _transforms() or forward_ad._current_level >= 0


def is_batched(dy: Tensor) -> bool:
    """Whether ``dy`` is a batch of gradients: ``autograd.grad(..., is_grads_batched=True)``."""
    return _is_batched(dy)


def is_watched() -> bool:
    """Whether a ``TorchDispatchMode``, which sees operators only: fake tensors, FLOP counters."""
    return torch._C._len_torch_dispatch_stack() > 0
