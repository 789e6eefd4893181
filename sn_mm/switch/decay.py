"""Weight decay, which pulls the mix of SN to equal shares: a switched config has none on it."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict

IMPORTANCE = ('mean_weight', 'var_weight')
# Constructors of optimizers that read custom_keys; None: the default.
_CONSTRUCTORS = (
    None,
    'DefaultOptimWrapperConstructor',
    'mmengine.DefaultOptimWrapperConstructor',
    'ForceDefaultOptimWrapperConstructor',
)


def leave_importance_out(cfg: Config) -> list[str]:
    """Takes the importance of SN out of the weight decay, as the paper has it.

    Written as ``custom_keys`` of ``optim_wrapper.paramwise_cfg``, with which MMEngine gives each
    parameter a group of its own; no other parameter's settings change. Keys of the importance that
    the config has, such as a learning rate, stay. Where it has other custom keys, these would no
    longer hold for the importance, and it stays as it is.

    Args:
        cfg: The switched config, changed in place.

    Returns:
        One line for the user: what was written, or that weight decay stays; none where there is no
        weight decay on norms.
    """
    wrapper: Any = cfg.get('optim_wrapper')
    optimizer = wrapper.get('optimizer') if isinstance(wrapper, dict) else None
    # Without the setting MMEngine has nothing to multiply, also where AdamW decays by default.
    if not isinstance(optimizer, dict) or not optimizer.get('weight_decay'):
        return []
    paramwise = wrapper.get('paramwise_cfg') or {}
    keys = paramwise.get('custom_keys') or {}
    if paramwise.get('norm_decay_mult') == 0 and not set(keys) & set(IMPORTANCE):
        return []
    given = {name: keys.get(name, {}) for name in IMPORTANCE}
    if all('decay_mult' in settings for settings in given.values()):
        return []
    others = set(keys) - set(IMPORTANCE)
    if others or wrapper.get('constructor') not in _CONSTRUCTORS:
        whose = 'custom_keys decide' if others else 'constructor decides'
        return [
            'optim_wrapper: weight decay pulls the mix of SN to equal shares; '
            f"the config's {whose} whether it is on mean_weight and var_weight"
        ]
    without = {name: {'decay_mult': 0.0, **settings} for name, settings in given.items()}
    wrapper['paramwise_cfg'] = ConfigDict({**paramwise, 'custom_keys': without})
    return ['optim_wrapper: no weight decay on the importance, which it pulls to equal shares']
