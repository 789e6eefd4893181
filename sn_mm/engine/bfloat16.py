"""Mixed precision on any device, a CPU too."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import autocast
from torch import nn

from ..errors import InputError


class BFloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass in bfloat16 autocast; MMEngine's ``AmpOptimWrapper`` needs a GPU.

    bfloat16 has float32's range, so the loss is not scaled. Takes the arguments of
    :class:`mmengine.optim.OptimWrapper`.

    Raises:
        InputError: An operator of the model has no implementation for bfloat16; of mmcv's on a CPU
            none has.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            try:
                yield
            except RuntimeError as error:
                if 'BFloat16' not in str(error):
                    raise
                frame = traceback.extract_tb(error.__traceback__)[-1]
                raise InputError(
                    f'{error} ({frame.filename}:{frame.lineno}): this model does not train in '
                    'bfloat16 here; train it without mixed precision (--amp, AmpOptimWrapper)'
                ) from error
