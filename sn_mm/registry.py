"""SN in MMEngine's registries: ``norm_cfg=dict(type='SN')``.

With ``custom_imports = dict(imports=['sn_mm'])`` the names SN, SN1d, SN2d and SN3d are in
MMEngine's root registry. ``type='sn_mm.SN'`` needs no import line: MMEngine finds this
file by its name.
"""

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

from .layer import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

MODELS = Registry('model', parent=ROOT_MODELS, scope='sn_mm', locations=['sn_mm.registry'])

_LAYERS = {'SN': SwitchNorm2d, 'SN1d': SwitchNorm1d, 'SN2d': SwitchNorm2d, 'SN3d': SwitchNorm3d}
for _name, _layer in _LAYERS.items():
    for _registry in (MODELS, ROOT_MODELS):
        _registry.register_module(name=_name, module=_layer)
