"""The packages whose configs MMEngine finds by ``PACKAGE::PATH``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

from mmengine.config.utils import MODULE2PACKAGE


def register_config_packages() -> None:
    """Makes ``_base_ = 'sn_mm::...'`` work, and that of a toolbox with another distribution's name.

    MMEngine keeps the distribution of each package that has configs, and looks for the package
    beside the distribution's metadata. For a name that is not a distribution it imports the module
    of that name and takes the module's folder. That folder is right in a checkout and for editable
    installs too, where the metadata lies elsewhere, and for a fork of a toolbox, which keeps the
    package's name (``mmseg``) and has its own distribution.
    """
    for package, name in MODULE2PACKAGE.items():
        if name != package and not _is_distribution(name) and find_spec(package) is not None:
            MODULE2PACKAGE[package] = package
    MODULE2PACKAGE['sn_mm'] = 'sn_mm.registry'  # its folder is the package's


def _is_distribution(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
