"""The toolbox that a config is written for, and the import of ``sn_mm`` in it."""

from __future__ import annotations

from mmengine.config import Config


def toolbox(cfg: Config) -> str:
    """Names the package that a config is written for.

    Args:
        cfg: A config with a ``default_scope``, or whose model's type is a class of the package.

    Returns:
        For example ``'mmdet'`` or ``'mmseg'``; ``'mmengine'`` if the config names neither.
    """
    if cfg.get('default_scope'):
        return cfg.default_scope
    model = cfg.get('model', {})
    model_type = model.get('switched', model).get('type', '')  # in sn_mm.SwitchedModel
    package, dot, _ = getattr(model_type, '__module__', model_type).partition('.')
    return package if dot else 'mmengine'


def model_type(cfg: Config) -> str:
    """The type of a config's model with its registry scope, so that it needs no default scope."""
    kind = cfg.model.type
    if not isinstance(kind, str):
        return f'{kind.__module__}.{kind.__qualname__}'
    return kind if '.' in kind else f'{toolbox(cfg)}.{kind}'


def import_sn_mm(cfg: Config) -> None:
    """Adds ``sn_mm`` to the imports of a config.

    Args:
        cfg: The config, changed in place: ``custom_imports``.
    """
    imports = cfg.get('custom_imports') or {'imports': []}
    names = [imports['imports']] if isinstance(imports['imports'], str) else imports['imports']
    cfg.custom_imports = dict(imports, imports=list(dict.fromkeys([*names, 'sn_mm'])))
