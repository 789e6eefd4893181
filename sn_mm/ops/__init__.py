"""The backends: functions as :class:`sn_mm.ops.protocol.Backend` has them.

``triton`` takes float32, float16 and bfloat16 input on CUDA where Triton works, ``cpu`` the same on
a CPU where a C compiler does; ``aten`` takes all other input, tensor subclasses and empty batches.
:mod:`sn_mm.ops.dispatch` chooses among them. ``custom_ops`` stands before them where PyTorch must
see operators: under ``torch.compile`` and dispatch modes.
"""

from __future__ import annotations

from . import custom_ops
from .dispatch import backend_for
from .memory_format import dense

__all__ = ['backend_for', 'custom_ops', 'dense']
