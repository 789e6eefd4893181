"""MMEngine's local files, written atomically."""

from __future__ import annotations

from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from ...atomic import atomic_path
from ...errors import InputError


class AtomicBackend(LocalBackend):
    """MMEngine's local files, written to ``<name>.tmp`` and renamed once they are on the disk.

    A process that is killed leaves the old file, or none, under the name: never half of one. What
    it left under the temporary name is overwritten when the same file is written again.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Writes a file.

        Args:
            obj: Its content.
            filepath: The file to make or replace. Its folder is made if it does not exist.

        Raises:
            InputError: It could not be written: the disk is full, the folder is read-only. The file
                that had the name is as it was.
        """
        target = Path(filepath)
        try:
            with atomic_path(target, target.with_name(f'{target.name}.tmp')) as temporary:
                with open(temporary, 'wb') as file:
                    file.write(obj)
        except OSError as error:
            raise InputError(
                f'{target} could not be written: {error.strerror} ({len(obj):,} bytes)'
            ) from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Writes a text file; see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


# A reload of this module registers the new class in place of the old.
register_backend('sn_mm.atomic', AtomicBackend, force=True)
