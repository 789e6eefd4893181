"""MMEngine's own checkpoints, read wherever MMEngine loads a local file.

From torch 2.6 on ``torch.load`` takes weights only, and refuses the log history in the checkpoints
that MMEngine 0.10 writes: neither resuming nor testing works.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from mmengine.runner import CheckpointLoader

from .safe_load import safe_load

# MMEngine's, or one that stands in its place. Other schemes (https://, s3://) have their own.
_loader = CheckpointLoader._get_checkpoint_loader('')


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Loads a local checkpoint as before, and by :func:`safe_load` what that refuses.

    Args:
        filename: A path.
        map_location: As ``torch.load`` takes it.

    Raises:
        UnpicklingError: :func:`safe_load` refuses it too.
        FileNotFoundError: There is no such file.
    """
    try:
        return _loader(filename, map_location)
    except UnpicklingError:
        # Not memory-mapped: what is loaded lives on, and the file may be written anew.
        return safe_load(Path(filename).expanduser(), map_location, mmap=False)


def register_local_loader() -> None:
    """Puts :func:`load_from_local` where MMEngine looks for the loader of a path."""
    CheckpointLoader.register_scheme('', load_from_local, force=True)
