"""``--norm SN`` on a ready-made config: one image a process, resumed and tested by any script."""

from __future__ import annotations

import json
import math
import re
from importlib.util import find_spec

import pytest
from small_runs import DETECTION, LIMIT, TOOLS, load, succeed, write_split

from sn_mm_cli.main import main

for package in ('mmcv', 'mmdet', 'mmseg'):
    pytest.importorskip(package)

# Smaller, but the parts of the ready-made config: norms in the backbone, by default in the head,
# and hard-coded in the DyHead of the neck.
READY_MADE = """
_base_ = 'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py'
fpn = dict(
    type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, start_level=1,
    add_extra_convs='on_output', num_outs=5)
model = dict(
    backbone=dict(depth=18, base_channels=8, frozen_stages=-1, init_cfg=None),
    neck=[fpn, dict(type='DyHead', in_channels=16, out_channels=16, num_blocks=1)],
    bbox_head=dict(num_classes=2, in_channels=16, feat_channels=16, stacked_convs=1))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=20, val_interval=20, _delete_=True)
param_scheduler = []
default_hooks = dict(
    logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=20))
"""
DATA = ''.join(
    line
    for line in DETECTION[DETECTION.index('load = [') :].splitlines(keepends=True)
    if not line.startswith(('train_cfg', 'optim_wrapper'))
).replace(', with_mask=True', '')


@pytest.mark.slow
@pytest.mark.timeout(3 * LIMIT)
def test_one_image_on_each_of_two_processes_trains_and_goes_on_without_the_switch(
    tmp_path, monkeypatch, capsys
):
    write_split(tmp_path / 'data', 'train', 8)
    write_split(tmp_path / 'data', 'val', 2)
    (tmp_path / 'atss.py').write_text(READY_MADE + DATA)
    switch = ('--norm', 'SN', '--norm-extent', 'all')
    one = ('--cfg-options', 'train_dataloader.batch_size=1')
    log = succeed(tmp_path, TOOLS / 'dist_train.sh', 'atss.py', 2, *switch, *one)
    assert log.count('Switchable Normalization') == 1  # the table, of one rank
    assert 'default of ATSSHead' in log and 'hard-coded: converted' in log
    assert 'hard-coded in the model' not in log  # the warning
    work_dir = tmp_path / 'work_dirs/atss'
    (scalars,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 20 and all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < sum(losses[:5])

    checkpoint = work_dir / 'iter_20.pth'
    weights = load(checkpoint)['state_dict']
    assert any(key.startswith('neck.1.') and key.endswith('mean_weight') for key in weights)
    monkeypatch.chdir(tmp_path)
    main(['test', 'atss.py', str(checkpoint), *switch, '--work-dir', 'ours'])
    results = [re.findall(r'(coco/\w+): (\S+)', text) for text in (log, capsys.readouterr().out)]
    assert results[0] == results[1] and len(results[0]) == 6

    theirs = find_spec('mmdet').submodule_search_locations[0] + '/.mim/tools'
    dumped = work_dir / 'atss.py'
    more = ('--cfg-options', 'train_cfg.max_iters=22')
    options = ('--resume', checkpoint, '--work-dir', 'theirs', *more)
    log = succeed(tmp_path, f'{theirs}/train.py', dumped, *options)
    assert 'resumed epoch: 0, iter: 20' in log
    assert 'hard-coded in the model' not in log and 'bbox_mAP' in log
    assert load(tmp_path / 'theirs/iter_22.pth')['state_dict'].keys() == weights.keys()
