"""A model run once on example inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_type

__all__ = ['check_inputs', 'run_example']


def check_inputs(inputs: object) -> None:
    """Checks example inputs: None, one tensor, or a tuple of arguments.

    Raises:
        InputError: Anything else.
    """
    if inputs is not None and not isinstance(inputs, tuple):
        check_type('inputs', inputs, Tensor, 'a tensor or a tuple of arguments')


@torch.no_grad()
def run_example(
    model: nn.Module, inputs: Tensor | tuple[Any, ...], modules: Iterable[nn.Module]
) -> tuple[Any, dict[nn.Module, list[torch.Size]]]:
    """Runs a model in evaluation mode, without gradients, and notes the shapes that modules get.

    Args:
        model: Any model. Afterwards its mode is what it was before.
        inputs: One tensor or a tuple of arguments.
        modules: Modules of ``model`` that take one tensor.

    Returns:
        The model's output, and the shapes of the inputs of each module, call by call.
    """
    shapes: dict[nn.Module, list[torch.Size]] = {module: [] for module in modules}

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        shapes[module].append((*args, *kwargs.values())[0].shape)

    modes = {module: module.training for module in model.modules()}
    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in shapes]
    model.eval()
    try:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return output, shapes
