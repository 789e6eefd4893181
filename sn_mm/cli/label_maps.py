"""The label maps of a segmentation data set, looked at before a model trains or is tested on them.

MMSegmentation meets a wrong one in the middle of a run, or never: label 255 is ignored, so that
masks of 0 and 255 train to a perfect score of the one class that is left.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..errors import InputError, some
from ..switch.components import ancestors

_FEW, _MANY = 8, 64  # label maps to read; up to _MANY as long as they hold too few classes


def check_label_maps(key: str, dataset: Any, model: nn.Module, training: bool) -> None:
    """Checks that the label maps exist, and the labels of a few that are spread over the data set.

    Args:
        key: The data set's key in the config, for the messages.
        dataset: A data set. It is left alone unless it is one of MMSegmentation's that reads label
            maps from this disk.
        model: The model, whose heads may ignore another label than the data set.
        training: Whether the model trains on the labels: from one class alone it learns nothing.

    Raises:
        InputError: A label map is not named, does not exist, is no image, has colors or more than
            8 bits; a label is that of no class; all that were read are ignored, or training and of
            one class; or data set and pipeline contradict each other in ``reduce_zero_label``.
    """
    step = _reader(dataset)
    if step is None:
        return
    reduced = dataset.reduce_zero_label
    if step.reduce_zero_label not in (None, reduced):
        raise InputError(
            f'{key}.reduce_zero_label is {reduced}, and LoadAnnotations in its pipeline has '
            f'{step.reduce_zero_label}: leave it out there'
        )
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    if 'seg_map_path' not in samples[0]:
        raise InputError(
            f'{key}.data_prefix names no seg_map_path, which its LoadAnnotations reads'
        )
    if '://' in samples[0]['seg_map_path']:
        return
    _check_existence(key, samples, dataset.seg_map_suffix)
    classes = dataset.metainfo['classes']
    ignored = {getattr(part, 'ignore_index', None) for part in (dataset, *model.modules())}
    wanted = 2 if training and len(classes) > 1 else 1
    found: set[int] = set()
    count = 0
    for sample in _spread(samples):
        if count >= _FEW and len(found - ignored) >= wanted:
            break
        labels = _labels(key, step, sample)
        wrong = sorted(label for label in labels - ignored if label >= len(classes))
        if wrong:
            raise InputError(
                f'{key}: the label map {sample["seg_map_path"]!r} has the labels {some(wrong)}; '
                f'its {len(classes)} classes are 0 to {len(classes) - 1}, and '
                f'{dataset.ignore_index} is ignored'
                + (' (with reduce_zero_label, after 1 is taken from each)' if reduced else '')
            )
        found |= labels
        count += 1
    named, rest = sorted(found - ignored), sorted(found & ignored)
    if len(named) < wanted:
        what = f'hold class {named[0]} ({classes[named[0]]}) alone' if named else 'hold no class'
        reason = '; reduce_zero_label ignores 0 and takes 1 from the others' if reduced else ''
        besides = f', and {some(rest)}, which is ignored{reason}' if rest else ''
        raise InputError(
            f'{key}: the {count} label maps that were read {what}{besides}; the '
            f'{len(classes)} classes are written as 0 to {len(classes) - 1 + reduced}'
        )


def _reader(dataset: Any) -> Any:
    """The step of a data set's pipeline that reads its label maps from this disk, if any."""
    if 'BaseSegDataset' in ancestors(type(dataset)) and dataset.metainfo.get('classes'):
        for step in dataset.pipeline.transforms:
            if type(step).__name__ == 'LoadAnnotations' and hasattr(step, 'reduce_zero_label'):
                return None if dataset.backend_args or step.backend_args else step
    return None


def _check_existence(key: str, samples: list[dict], suffix: str) -> None:
    names_in = lru_cache(None)(_names)
    missing = []
    for sample in samples:
        folder, name = os.path.split(sample['seg_map_path'])
        if name not in names_in(folder):
            missing.append(sample)
    if missing:
        path, image = missing[0]['seg_map_path'], missing[0]['img_path']
        raise InputError(
            f'{key}: {len(missing)} of {len(samples)} images have no label map, {image!r} no '
            f'{path!r}{suffixes_in(os.path.dirname(path), "seg_map_suffix", suffix)}'
        )


def _names(folder: str) -> set[str]:
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def suffixes_in(folder: str, setting: str, suffix: str) -> str:
    """Says, for the end of a message, what the files in a folder end in if it is not ``suffix``."""
    files = [path.name for path in Path(folder).rglob('*') if path.is_file()]
    if not files or any(name.endswith(suffix) for name in files):
        return ''
    most = Counter(Path(name).suffix for name in files).most_common(1)[0][0]
    return f'; {setting}={suffix!r}, and the files there end in {most!r}, such as {min(files)!r}'


def _spread(samples: list[dict]) -> Iterator[dict]:
    """Up to :data:`_MANY` samples as far apart as possible; so are the first :data:`_FEW`."""
    ways = (np.linspace(0, len(samples) - 1, count, dtype=int) for count in (_FEW, _MANY))
    for index in dict.fromkeys(np.concatenate(list(ways)).tolist()):
        yield samples[index]


def _labels(key: str, step: Any, sample: dict) -> set[int]:
    import mmcv

    path = sample['seg_map_path']
    try:
        label_map = step({**sample, 'seg_fields': []})['gt_seg_map']
        in_file = mmcv.imread(path, 'unchanged', backend=step.imdecode_backend)
    except (OSError, AttributeError) as error:  # Pillow's, OpenCV's
        raise InputError(
            f'{key}: the label map {path!r} is not an image that can be read: {error}'
        ) from error
    largest = in_file.max()
    if largest > np.iinfo(np.uint8).max:
        raise InputError(
            f'{key}: the label map {path!r} has labels up to {largest}; MMSegmentation reads 8 '
            f'bits, of which this one becomes {int(largest) % 256}: labels must be 0 to 255'
        )
    if label_map.ndim != 2:
        raise InputError(
            f'{key}: the label map {path!r} has {label_map.shape[-1]} channels; '
            'it must have one, with the number of the class of each pixel, and no colors'
        )
    return set(np.unique(label_map).tolist())
