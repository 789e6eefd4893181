"""SN in MMEngine's registries: ``norm_cfg=dict(type='SN')``.

With ``custom_imports = dict(imports=['sn_mm'])`` the names SN, SN1d, SN2d and SN3d are in
MMEngine's root registry. ``type='sn_mm.SN'`` needs no import line: MMEngine finds this
file by its name.
"""

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

from .layer import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

_LAYERS = {'SN': SwitchNorm2d, 'SN1d': SwitchNorm1d, 'SN2d': SwitchNorm2d, 'SN3d': SwitchNorm3d}

# A reload finds the child and the names that it registered before; another package's name is
# never overwritten.
if 'sn_mm' in ROOT_MODELS.children:
    MODELS = ROOT_MODELS.children['sn_mm']
else:
    MODELS = Registry('model', parent=ROOT_MODELS, scope='sn_mm', locations=['sn_mm.registry'])
for _name, _layer in _LAYERS.items():
    for _registry in (MODELS, ROOT_MODELS):
        _known = getattr(_registry.module_dict.get(_name), '__module__', None)
        _registry.register_module(_name, force=_known == _layer.__module__, module=_layer)
