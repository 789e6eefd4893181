"""Loaders of checkpoints in MMEngine, for the files that its own loaders refuse."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import mmengine
from mmengine.runner import CheckpointLoader

from .safe_load import safe_load

# MMEngine's own loaders, or those that somebody put in their place. They load all other files.
_local = CheckpointLoader._get_checkpoint_loader('')
_torchvision = CheckpointLoader._get_checkpoint_loader('torchvision://')


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Loads a local checkpoint, MMEngine's own included.

    From torch 2.6 on ``torch.load`` takes weights only, and refuses the log history that MMEngine
    0.10 writes into checkpoints. Such a file is read by :func:`safe_load`.

    Args:
        filename: A path.
        map_location: As ``torch.load`` takes it.

    Raises:
        UnpicklingError: :func:`safe_load` refuses it too.
        FileNotFoundError: There is no such file.
    """
    try:
        return _local(filename, map_location)
    except UnpicklingError:
        # It is not memory-mapped: its tensors live on, and the file may be written anew.
        return safe_load(Path(filename).expanduser(), map_location, mmap=False)


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Loads ``torchvision://NAME``, by MMEngine's own table of URLs where torchvision is missing.

    MMEngine imports torchvision for its newer names, and for the older ones too.

    Args:
        filename: ``torchvision://`` and a name, for example ``resnet50``.
        map_location: As ``torch.load`` takes it.

    Raises:
        ImportError, RuntimeError: As torchvision's import, for a name that is not in the table.
    """
    url = torchvision_url(filename)
    if url is not None and not imports_torchvision():
        return CheckpointLoader.load_checkpoint(url, map_location)
    return _torchvision(filename, map_location)


def torchvision_url(filename: str) -> str | None:
    """The URL in MMEngine's table of a ``torchvision://NAME``; None if it has none."""
    table = Path(mmengine.__file__).parent / 'hub/torchvision_0.12.json'
    return json.loads(table.read_text()).get(filename.rpartition('://')[2])


def imports_torchvision() -> bool:
    """Whether torchvision is installed and fits torch: a CUDA build fails beside a CPU build."""
    try:
        import_module('torchvision')
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def register_checkpoint_loaders() -> None:
    """Puts these where MMEngine looks for the loaders of paths and of ``torchvision://``."""
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme('torchvision://', load_from_torchvision, force=True)
