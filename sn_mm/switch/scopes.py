"""Which norms of a model a switch is for, by their path in the config or their module's name."""

from __future__ import annotations

SCOPES = ('existing', 'backbone', 'all')


def reason_to_leave(path: str, scope: str) -> str:
    """Why the norm at ``path`` stays as it is, '' if it is switched.

    Args:
        path: Dotted path in the config, or name of a module.
        scope: One of :data:`SCOPES`.
    """
    parts = path.split('.')
    # MMDetection's distillation: teacher_backbone, ... in the config, teacher_model in the model.
    if any(part.startswith('teacher_') for part in parts):
        return 'a teacher keeps the norms that its weights were trained with'
    if scope == 'backbone' and not any('backbone' in part for part in parts):
        return "outside the backbone (scope 'backbone')"
    return ''
