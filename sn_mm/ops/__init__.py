"""The backends, and the choice of one: functions as :class:`sn_mm.ops.protocol.Backend` has them.

``triton`` takes float32, float16 and bfloat16 input on CUDA where Triton works, ``cpu`` the same on
a CPU where a C compiler does; ``aten`` takes all other input, tensor subclasses and empty batches.
``custom_ops`` stands before them where PyTorch must see operators: under ``torch.compile`` and
dispatch modes. The environment variable ``SN_MM_BACKEND``, read at import, sets one of them for all
input.
"""

from __future__ import annotations

from torch import Tensor

from .._compat import is_compiling, is_watched
from . import custom_ops
from .dispatch import computing_backend
from .memory_format import dense
from .protocol import Backend

__all__ = ['backend_for', 'dense']


def backend_for(x: Tensor) -> Backend:
    """The backend that a layer calls for ``x``.

    Raises:
        InputError: ``SN_MM_BACKEND`` names one that cannot take ``x``.
    """
    return custom_ops if is_compiling() or is_watched() else computing_backend(x)
