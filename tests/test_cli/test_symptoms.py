"""The page of symptoms has the words that MMDetection's own script says, with the remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
ROOT = Path(__file__).parents[2]
RECIPE = 'sn_mm::mask_rcnn/mask-rcnn_r50-sn_fpn_8xb2-2x_coco.py'
SYMPTOMS = {
    'Cannot find None in registry under scope name mmdet': (
        "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py'\n"
        "model = dict(backbone=dict(norm_cfg=dict(type='SN')))\n"
    ),
    'mmengine does not support to load sn_mm config': f"_base_ = '{RECIPE}'\n",
}


@pytest.mark.slow
@pytest.mark.parametrize('words', SYMPTOMS)
def test_the_page_has_the_words_of_the_script(tmp_path, words):
    (tmp_path / 'child.py').write_text(SYMPTOMS[words])
    script = f'{find_spec("mmdet").submodule_search_locations[0]}/.mim/tools/train.py'
    done = subprocess.run(
        [sys.executable, script, 'child.py'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert words in done.stderr.splitlines()[-1]
    assert f'### `{words}`' in (ROOT / 'docs/reference/troubleshooting.md').read_text('utf-8')
