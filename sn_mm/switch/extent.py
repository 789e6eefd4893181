"""The extent of a switch: all norms of a model, or those of its backbones."""

from __future__ import annotations

from ..errors import InputError

EXTENTS = ('existing', 'backbone', 'all')


def check_extent(extent: object) -> None:
    """Checks the extent of a switch.

    Raises:
        InputError: Another than :data:`EXTENTS`.
    """
    if extent not in EXTENTS:
        raise InputError(
            f'the extent of the switch must be one of {", ".join(EXTENTS)}, got {extent!r}'
        )


def reason_to_leave(path: str, extent: str) -> str:
    """Why the norm at ``path`` stays as it is, '' if it is switched.

    Args:
        path: Dotted path in the config, or name of a module.
        extent: One of :data:`EXTENTS`.
    """
    parts = path.split('.')
    # MMDetection's distillation: teacher_backbone, ... in the config, teacher_model in the model.
    if any(part.startswith('teacher_') for part in parts):
        return 'a teacher keeps the norms that its weights were trained with'
    if extent == 'backbone' and not any('backbone' in part for part in parts):
        return 'outside the backbone, which alone is switched'
    return ''
