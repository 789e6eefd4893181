"""Finds the fault in an annotation file of COCO's layout, of which no data set can be made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, some

_PARTS = ('images', 'annotations', 'categories')


def explain_annotations(key: str, path: str, classes: Sequence[str] | None) -> None:
    """Looks for the fault in an annotation file of which no data set could be made.

    Args:
        key: The file's key in the config, for the message.
        path: The file. One that does not end in ``.json`` is left alone.
        classes: The data set's classes; None for any.

    Raises:
        InputError: It is not JSON, not in COCO's layout, or has other categories than ``classes``.
    """
    file = Path(path)
    if file.suffix != '.json' or not file.is_file():
        return
    try:
        content = json.loads(file.read_text('utf-8'))
    except ValueError as error:  # of JSON, or of its encoding
        raise InputError(
            f'{key}: {path!r} is not JSON, broken or incomplete ({file.stat().st_size} bytes): '
            f'{error}'
        ) from error
    missing = [part for part in _PARTS if not isinstance(content, dict) or part not in content]
    if missing:
        raise InputError(f"{key}: {path!r} is not in COCO's layout: it has no {', '.join(missing)}")
    names = [category['name'] for category in content['categories']]
    unknown = [name for name in classes or () if name not in names]
    if unknown:
        raise InputError(
            f'{key}: {path!r} has the categories {some(names)}, and not {some(unknown)} of the '
            "data set's classes (metainfo.classes)"
        )
    for annotation in content['annotations']:
        if len(annotation.get('bbox', range(4))) != 4:
            raise InputError(
                f'{key}: {path!r}: a bbox must be four numbers, that of annotation '
                f'{annotation.get("id")} is {annotation["bbox"]}'
            )


def classes_of(dataset: dict, kind: Any) -> Sequence[str] | None:
    """The classes that a data set's config names, else those of its class; None for neither."""
    given = (dataset.get('metainfo') or {}).get('classes')
    if given is None:
        given = getattr(kind, 'METAINFO', {}).get('classes')
    return given if isinstance(given, (list, tuple)) else None
