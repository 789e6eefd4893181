"""Mends packages of this environment that do not import as published; tools/setup_env.sh runs it.

torchvision as package indexes have it is built for CUDA. Beside a CPU build of torch its operators
do not load, and its import fails at two that it takes for declared. It declares them itself then,
and its models and transforms work; a call of an operator says that there are none.

mmaction2 1.2.0 lacks one module, models/localizers/drn, which its models import.

mmcv-lite is mmcv without its compiled operators, which MMSegmentation imports and few of its models
call. A stand-in for them imports, and an operator that is called says that it is missing. So
MMSegmentation works where there is no compiler.

What imports already stays as it is. Prints one line that names the folders that it changed, if any.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

DECLARATIONS = """

# Added by sn_mm's tools/misc/mend_packages.py.
if not _has_ops():
    _library = torch.library.Library('torchvision', 'DEF')
    for _name in ('nms', 'qnms'):
        _library.define(f'{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
"""
DRN = '''"""Stands in for the module that mmaction2 1.2.0 was published without."""


class DRN:
    def __init__(self, *args, **kwargs):
        raise NotImplementedError('mmaction2 1.2.0 was published without DRN')
'''
EXTENSION = '''"""Stands in for mmcv's operators. Added by sn_mm's tools/misc/mend_packages.py."""


def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f'mmcv-lite has no operators; {name} needs mmcv')

    return missing
'''


def folder_of(package: str) -> Path | None:
    """The folder of an installed package; None if it is not installed."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def mend_torchvision(folder: Path) -> bool:
    """Lets torchvision in ``folder`` declare its operators, if its import fails for want of them.

    Returns:
        Whether that was so.
    """
    try:
        import_module('torchvision')
    except RuntimeError as error:
        if 'operator torchvision::nms does not exist' not in str(error):
            raise
        with open(folder / 'extension.py', 'a') as file:
            file.write(DECLARATIONS)
        return True
    return False


def mend_mmaction(folder: Path) -> bool:
    """Writes the module that mmaction2 in ``folder`` lacks, if it does.

    Returns:
        Whether that was so.
    """
    localizers = folder / 'models/localizers'
    imported = 'from .drn.drn import DRN' in (localizers / '__init__.py').read_text()
    if not imported or (localizers / 'drn').exists():
        return False
    (localizers / 'drn').mkdir()
    (localizers / 'drn/__init__.py').touch()
    (localizers / 'drn/drn.py').write_text(DRN)
    return True


def mend_mmcv(folder: Path) -> bool:
    """Writes a stand-in for the operators into mmcv in ``folder``, if that is mmcv-lite.

    Returns:
        Whether it is, and had none.
    """
    extension = folder / '_ext.py'
    try:
        distribution('mmcv-lite')
    except PackageNotFoundError:
        return False
    if extension.exists():
        return False
    extension.write_text(EXTENSION)
    return True


def main() -> None:
    mends = {'torchvision': mend_torchvision, 'mmaction': mend_mmaction, 'mmcv': mend_mmcv}
    found = ((folder_of(package), mend) for package, mend in mends.items())
    mended = [str(folder) for folder, mend in found if folder and mend(folder)]
    if mended:
        print('mending', ', '.join(mended))


if __name__ == '__main__':
    main()
