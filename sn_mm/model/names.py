"""Gives SN layers their names, which the ranks of a job compare where they meet."""

from __future__ import annotations

from torch import nn

from ..layer import SwitchNorm

__all__ = ['name_layers']


def name_layers(model: nn.Module) -> nn.Module:
    """Tells each SN layer its name in the model, for the errors of synchronized layers.

    Where ranks meet in different layers, the error then has the names. Call it on every rank, on
    the model without wrappers (DDP, FSDP). :func:`sn_mm.convert_switch_norm` and ``sn-mm train``
    do, and ``LayerNamesHook`` does in MMEngine's runner.

    Args:
        model: Any torch model. Its layers' ``sync_name`` is set: a plain attribute, which copies
            and pickles keep, and which is in no checkpoint.

    Returns:
        ``model``.
    """
    for name, module in model.named_modules():
        if isinstance(module, SwitchNorm):
            module.sync_name = name
    return model
