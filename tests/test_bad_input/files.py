"""The files that the bad command lines name. cases.yaml says of each what it is."""

from __future__ import annotations

import json
import os
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.utils import get_installed_path
from small_runs import DETECTION, SEGMENTATION, write_split

_TEXTS = {
    'broken.py': 'model = dict(\n',
    'name.py': 'model = foo\n',
    'zero.py': '1 / 0\n',
    'none.py': 'x = 1\n',
    'cfg.json': '{"a": 1',
    'list.json': '[1, 2]',
    'imports.py': "_base_ = 'seg.py'\ncustom_imports = dict(imports=['nowhere'])\n",
    'scope.py': "_base_ = 'seg.py'\ndefault_scope = 'mmnone'\n",
    'type.py': "_base_ = 'seg.py'\nmodel = dict(type='Nope')\n",
    'model.py': 'model = [1]\n',
    'text.txt': 'a line\n',
    'page.pth': '<!DOCTYPE html><html><body>404</body></html>',
}
MARKER = 'code-ran'


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'touch {MARKER}',)


def write_files(folder: Path) -> None:
    """Writes all but the checkpoints of whole models."""
    for split, count in (('train', 2), ('val', 2)):
        write_split(folder / 'data', split, count)
    for name, text in (('det', DETECTION), ('seg', SEGMENTATION)):
        for toolbox in ('mmdet', 'mmseg'):  # found once, and not at each command
            configs = Path(get_installed_path(toolbox), '.mim/configs')
            text = text.replace(f'{toolbox}::', f'{configs}/')
        Config.fromstring(text, '.py').dump(folder / f'{name}.py')
    for name, text in _TEXTS.items():
        (folder / name).write_text(text)
    (folder / 'bin.py').write_bytes(b'\xff\xfe\x00\x01')
    (folder / 'folder').mkdir()
    _write_annotations(folder / 'data/coco/annotations')
    _write_masks(folder / 'data/cityscapes')
    contents = {
        'numbers': {'lr': 0.1},
        'noweights': {'state_dict': {}},
        'weights': {'state_dict': {'a': torch.ones(2)}},
        'intkeys': {'state_dict': {1: torch.ones(2)}},
        'module': torch.nn.Linear(2, 2),
        'evil': {'state_dict': {'a': torch.ones(1)}, 'x': Evil()},
    }
    for name, content in contents.items():
        torch.save(content, folder / f'{name}.pth')
    (folder / 'truncated.pth').write_bytes((folder / 'weights.pth').read_bytes()[:500])
    (folder / 'evil.pkl').write_bytes(pickle.dumps(Evil()))


def _write_masks(folder: Path) -> None:
    """Label maps of 0 and 255, as mask editors write them."""
    for label_map in (folder / 'gtFine/train').rglob('*.png'):
        mask = folder / 'editor' / label_map.relative_to(folder / 'gtFine/train')
        mask.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(mask), 255 * (cv2.imread(str(label_map), cv2.IMREAD_GRAYSCALE) > 0))


def _write_annotations(folder: Path) -> None:
    good = json.loads((folder / 'instances_train2017.json').read_text())
    dogs = [{'id': 0, 'name': 'dog'}, {'id': 1, 'name': 'cat'}]
    moved, boxes, own = deepcopy(good), deepcopy(good), deepcopy(good)
    own['categories'] = [{'id': 0, 'name': 'nucleus'}]
    own['annotations'] = [a for a in own['annotations'] if a['category_id'] == 0]
    for image in moved['images']:
        image['file_name'] = 'no' + image['file_name']
    for annotation in boxes['annotations']:
        annotation['bbox'] = [1, 2]
    contents = {
        'list': [1, 2],
        'keys': {},
        'noann': {'images': good['images']},
        'cats': {**good, 'categories': dogs},
        'noimages': {**good, 'images': []},
        'nofiles': moved,
        'own': own,
        'badbox': boxes,
    }
    for name, content in contents.items():
        (folder / f'{name}.json').write_text(json.dumps(content))
    (folder / 'broken.json').write_text(json.dumps(good)[:50])
    (folder / 'empty.json').write_text('')


def write_models(folder: Path) -> None:
    """Writes checkpoints as training with det.py and seg.py leaves them."""
    import mmdet.models  # noqa: F401
    import mmseg.models  # noqa: F401
    from mmengine.registry import MODELS, DefaultScope

    progress = {
        'meta': {'iter': 3, 'epoch': 0},
        'message_hub': {'loss': HistoryBuffer([1.5], [1])},
        'optimizer': {'state': {}, 'param_groups': []},
    }
    for name, registry_scope in (('det', 'mmdet'), ('seg', 'mmseg')):
        with DefaultScope.overwrite_default_scope(registry_scope):
            model = MODELS.build(Config.fromfile(folder / f'{name}.py').model)
        torch.save({'state_dict': model.state_dict(), **progress}, folder / f'{name}.pth')
