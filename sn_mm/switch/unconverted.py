"""Norms that are hard-coded in a model, where no config reaches them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from .._deprecated import warn_renamed
from ..layer import SwitchNorm
from ..model.convert import replace_norms
from ..model.levels import leave_out_batch
from ..model.norms import Norm, find_norms
from .components import part_passed_by, shares_levels
from .copied_weights import copy_weights_into_sn
from .extent import check_extent, reason_to_leave
from .target import check_target, is_sparse, layer_arguments


def find_unconverted(
    model: nn.Module, extent: str | None = None
) -> list[tuple[str, type[nn.Module]]]:
    """Finds the BatchNorm, SyncBatchNorm, GroupNorm and InstanceNorm layers in a model.

    Args:
        model: Any torch model.
        extent: 'existing', 'backbone' or 'all': only norms that a switch of this extent replaces.
            Default: all norms.

    Returns:
        Name and class of each, in the order of the model's modules.

    Raises:
        InputError: Another extent.
    """
    if extent is not None:
        check_extent(extent)
    return [
        (norm.name, type(norm.module))
        for norm in find_norms(model)
        if norm.layer and not (extent and reason_to_leave(norm.name, extent))
    ]


def convert_unconverted(model: nn.Module, norm_cfg: dict, extent: str = 'existing') -> nn.Module:
    """Converts the norms that the switch of a config did not reach, in place.

    Those that serve several levels of a feature pyramid get ``normalizers=['in', 'ln']``, as
    :func:`switch_norm_cfg` gives them. Convert before the optimizer is built.

    Args:
        model: A model that is not wrapped yet.
        norm_cfg: As for :func:`switch_norm_cfg`.
        extent: As its ``extent``.

    Returns:
        ``model``.

    Raises:
        InputError: ``norm_cfg`` or ``extent`` outside what is allowed.
    """
    check_target(norm_cfg)
    check_extent(extent)
    replace_unconverted(model, find_norms(model), norm_cfg, extent)
    return model


def replace_unconverted(
    model: nn.Module, norms: Iterable[Norm], norm_cfg: dict, extent: str
) -> dict[Norm, SwitchNorm]:
    """Replaces those of a model's norms that are in the extent of a switch.

    Args:
        model: The model.
        norms: Those that :func:`sn_mm.model.norms.find_norms` found in it.
        norm_cfg, extent: Of the switch.

    Returns:
        The new layers.
    """
    # By module: a norm may have another name outside of the head.
    levels = {inner for m in model.modules() if shares_levels(type(m)) for inner in m.modules()}
    alone = layer_arguments(norm_cfg)
    shared = leave_out_batch(alone)
    arguments = {
        norm: shared if norm.module in levels else alone
        for norm in norms
        if not norm.reason and not reason_to_leave(norm.name, extent)
    }
    _, layers = replace_norms(model, arguments, is_sparse(norm_cfg))
    if 'requires_grad' in norm_cfg:
        for layer in layers.values():
            layer.requires_grad_(norm_cfg['requires_grad'])
    return layers


def extent_of(switch: dict) -> str:
    """The extent of a switch in a config of SwitchedModel, which version 1.0 called its scope."""
    if 'scope' in switch:
        warn_renamed("'scope' in model.switched", "'extent'", stacklevel=3)
    return switch.get('extent', switch.get('scope', 'existing'))


def build_switched_model(switched: dict, **model: Any) -> nn.Module:
    """Builds a model, and does to it what no config can.

    It converts the norms that no config reaches. It makes MMAction2's ResNets copy weights of
    BatchNorm into SN as ``load_state_dict`` does. And it gives ``sync=False`` to the layers of
    parts that a rank may pass by in training.

    It is registered as ``sn_mm.SwitchedModel``, so that a config which needs this trains, tests and
    resumes by itself, in the toolboxes' own scripts too.

    Args:
        switched: ``type`` of the model; ``norm_cfg`` and ``extent`` of the switch, where there are
            norms to convert; ``earlier``: these two of each switch before, whose norms stay as they
            were converted then.
        **model: The rest of the model's config.

    Returns:
        The model.
    """
    built = MODELS.build({**model, 'type': switched['type']})
    for switch in (*switched.get('earlier', ()), switched):
        if 'norm_cfg' in switch:
            convert_unconverted(built, switch['norm_cfg'], extent_of(switch))
    copy_weights_into_sn(built)
    for owner in built.modules():
        if part := part_passed_by(type(owner)):
            for layer in owner.get_submodule(part[0]).modules():
                if isinstance(layer, SwitchNorm):
                    layer.sync = False
    return built
