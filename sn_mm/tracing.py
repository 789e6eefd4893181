"""Whether PyTorch runs a model or records it: one answer each, asked here."""

import torch

__all__ = ['is_compiling', 'is_exporting']


def _never() -> bool:
    return False


_asks_compiler = getattr(torch.compiler, 'is_compiling', _never)  # since torch 2.3
# torch < 2.7 does not tell torch.export from torch.compile.
_asks_exporter = getattr(torch.compiler, 'is_exporting', _asks_compiler)
# Whether torch.compile traces. Before torch 2.4 it breaks its graph at the layer instead.
is_compiling = _asks_compiler if hasattr(torch.library.Library, '_register_fake') else _never


@torch.jit.unused
def is_exporting() -> bool:
    """Whether ``torch.jit.trace``, ``torch.export`` or ``torch.onnx`` (by one of them) record."""
    return torch.jit.is_tracing() or _asks_exporter()
