"""``sn-mm compare-norms``: equal runs, honest reports, and comparisons that go on."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import subprocess
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small_runs import DETECTION, SEGMENTATION, start, write_split

import sn_mm
from sn_mm.cli import compare_norms
from sn_mm.cli.compare_norms import Configs, check_quick, failed_before, still_to_run
from sn_mm.compare import run as comparison
from sn_mm.compare.notes import notes_of
from sn_mm.compare.plan import (
    Run,
    base_batch_size,
    check_config,
    digest,
    norm_cfg_of,
    plan_runs,
    run_config,
    settings_of,
    switch,
)
from sn_mm.compare.report import write_report
from sn_mm.compare.results import Group, best_apart, group, verdict
from sn_mm.compare.run import finished, reason_of
from sn_mm.errors import InputError
from sn_mm.output.files import append_record
from sn_mm.switch import Left, SwitchReport
from sn_mm_cli import PROGRAM
from sn_mm_cli.main import main


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('compare')
    for split, count in (('train', 4), ('val', 2)):
        write_split(folder / 'data', split, count)
    (folder / 'det.py').write_text(DETECTION)  # norm_eval=True by MMDetection's default
    (folder / 'seg.py').write_text(SEGMENTATION)
    return folder


@pytest.fixture(scope='module')
def segmentation(folder: Path) -> Config:
    cfg = Config.fromfile(folder / 'seg.py')
    cfg.train_dataloader.batch_size = 4
    return cfg


def record(norm: str, images: int, seed: int, value: float, **others: object) -> dict:
    return {
        'name': f'{norm}-2x{images}-seed{seed}', 'norm': norm, 'processes': 2, 'images': images,
        'seed': seed, 'lr': 0.01 * images, 'optimizer': 'SGD', 'max_iters': 24 // images,
        'max_epochs': None, 'seconds_per_iteration': 0.1 * images, 'loss': 1.0,
        'peak_memory_mib': 100.0, 'importance': None, 'metrics': {'mIoU': value}, **others,
    }  # fmt: skip


def test_all_cells_see_the_same_images_with_a_learning_rate_of_their_batch(segmentation):
    small, large = (
        run_config(segmentation, Run('SN', 2, images, 7), base_batch=8) for images in (1, 4)
    )
    assert (small.train_cfg.max_iters, large.train_cfg.max_iters) == (96, 24)
    assert (small.train_dataloader.batch_size, large.train_dataloader.batch_size) == (1, 4)
    assert small.optim_wrapper.optimizer.lr == pytest.approx(0.005)
    assert large.optim_wrapper.optimizer.lr == 0.02
    assert (small.param_scheduler[0]['end'], large.param_scheduler[0]['end']) == (96, 24)
    assert (
        small.default_hooks.checkpoint.interval == 16 and small.default_hooks.checkpoint.save_last
    )
    assert not {'val_dataloader', 'val_cfg', 'val_evaluator'} & set(small)
    assert 'val_interval' not in small.train_cfg
    assert small.randomness.seed == large.randomness.seed == 7
    assert segmentation.train_cfg.max_iters == 24


@pytest.mark.parametrize(
    ('norm', 'kind'), [('BN', 'BN'), ('GN num_groups=4', 'GN'), ('SN sync=False', 'SN')]
)
def test_a_cell_has_its_norm_and_no_other(segmentation, norm, kind):
    switched, _ = switch(segmentation, norm, 'existing')
    types = [found['type'] for found, _ in comparison._norms(switched.model, {})]
    assert types and set(types) == {kind}


def test_syncbn_on_a_cpu_is_sn_over_bn_alone(monkeypatch):
    monkeypatch.setattr('sn_mm.compare.plan.get_device', lambda: 'cpu')
    norm_cfg = norm_cfg_of('SyncBN')
    assert (norm_cfg['type'], norm_cfg['normalizers']) == ('SN', ['bn'])
    monkeypatch.setattr('sn_mm.compare.plan.get_device', lambda: 'cuda')
    assert norm_cfg_of('SyncBN')['type'] == 'SyncBN'


def test_cells_go_seed_by_seed():
    runs = plan_runs(['BN', 'SN', 'BN'], 2, [1, 2], 2)
    assert [c.seed for c in runs] == [0] * 4 + [1] * 4
    assert len({c.name for c in runs}) == len(runs)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'train_dataloader': {}}, 'train_dataloader.batch_size'),
        ({'train_cfg': {'type': 'EpochBasedTrainLoop'}}, 'max_iters or max_epochs'),
        ({'optim_wrapper': {'type': 'OptimWrapper'}}, 'optim_wrapper.optimizer.lr'),
        ({'train_dataloader': {'batch_size': 2, 'sampler': {'batch_size': 2}}}, 'sampler'),
        ({'param_scheduler': {'type': 'ReduceOnPlateauLR'}}, 'ReduceOnPlateau in param_scheduler'),
    ],
)
def test_a_config_that_cannot_be_made_equal_is_refused(segmentation, change, said):
    cfg = Config({**segmentation.to_dict(), **change})
    with pytest.raises(InputError, match=said):
        check_config(cfg)


def test_bold_is_for_ranges_that_part():
    def groups(**values: list[float]) -> dict[str, Group]:
        return {
            norm: Group([record(norm, 1, s, v) for s, v in enumerate(found)], 'mIoU', 'metrics')
            for norm, found in values.items()
        }

    assert best_apart(groups(BN=[50, 52], SN=[53, 60])) == 'SN'
    assert best_apart(groups(BN=[50, 54], SN=[53, 60])) is None
    assert best_apart(groups(BN=[50], SN=[53])) is None
    assert best_apart(groups(BN=[50, 52, 51], SN=[53, 60])) is None
    assert best_apart(groups(SN=[53, 60])) is None


def test_whether_sn_pays_is_said_for_each_batch():
    values = {
        ('BN', 1): [50, 52], ('SN', 1): [53, 54], ('SN normalizers=[in,ln]', 1): [60, 70],
        ('BN', 2): [50, 52], ('SN', 2): [40, 41], ('SN normalizers=[bn]', 2): [70, 71],
        ('BN', 4): [50, 52], ('SN', 4): [51, 60],
        ('BN', 8): [50], ('SN', 8): [60],
        ('SN', 16): [60, 61],
        ('SN', 32): [50, 51], ('BN', 32): [47, 49], ('GN', 32): [35, 55],
    }  # fmt: skip
    records = [
        record(norm, images, seed, value)
        for (norm, images), found in values.items()
        for seed, value in enumerate(found)
    ]
    records.append({**record('BN', 16, 0, 0.0), 'error': 'ValueError'})
    assert verdict(group(records, 'mIoU'), 2, 'mIoU') == [
        '2 x 1: SN pays: mIoU 65.0 with `SN normalizers=[in,ln]`, 51.0 with `BN`, the best without',
        '2 x 2: SN does not pay: mIoU 40.5 with `SN`, 70.5 with `SN normalizers=[bn]`, the best '
        'without',
        '2 x 4: not decided by these seeds: mIoU 55.5 with `SN`, 51.0 with `BN`, the best without',
        '2 x 8: not decided by these seeds: mIoU 60.0 with `SN`, 50.0 with `BN`, the best without',
        '2 x 16: nothing to compare with, for `BN`, `SN normalizers=[bn]`, `GN` did not run',
        '2 x 32: not decided by these seeds: mIoU 50.5 with `SN`, 48.0 with `BN`, the best without',
    ]


def test_a_report_says_all_that_was_measured(tmp_path):
    weights = {s: {'in': 0.5, 'ln': 0.3, 'bn': 0.2} for s in ('mean', 'var')}
    records = [
        *(record('SN', 2, seed, 70 + seed, importance=weights) for seed in range(2)),
        *(record('BN', 2, seed, 60 + seed) for seed in range(2)),
        record('SN', 1, 0, 65, importance=weights, loss=None),
        {'name': 'BN-2x1-seed0', 'norm': 'BN', 'processes': 2, 'images': 1, 'seed': 0,
         'error': 'ValueError: one value per channel'},
    ]  # fmt: skip
    header = {
        'config': 'a.py', 'command': 'sn-mm compare-norms a.py', 'machine': 'Here.',
        'processes': 2, 'base_batch': 4, 'base_from': 'somebody', 'notes': ['`BN`: a note'],
        'memory': 'Resident memory.', 'runs': 6,
    }  # fmt: skip
    write_report(tmp_path, header, records, 'mIoU')
    text = (tmp_path / 'README.md').read_text()
    lines = [re.sub(' +', ' ', line).strip() for line in text.splitlines()]
    for line in (
        '- 2 x 2: SN pays: mIoU 70.5 with `SN`, 60.5 with `BN`, the best without.',
        '| `SN` | 65.0, 1 of 2 seeds, 1 diverged | **70.5 (70.0 to 71.0)** |',
        '| `BN` | - [1] | 60.5 (60.0 to 61.0) |',
        '[1] does not run: ValueError: one value per channel',
        '`--retry-failed` repeats these runs.',
        '| `SN` | 2 x 2 | 0.500, 0.300, 0.200 | 0.500, 0.300, 0.200 |',
        '| `BN` | - | 0.200, 100 |',
        '| 2 x 2 | 0.02 (SGD) | 12 iterations | 48 |',
        'sn-mm compare-norms a.py',
        '- `BN`: a note',
    ):
        assert line in lines
    for name in ('metric', 'importance', 'cost'):
        assert (tmp_path / f'{name}.png').stat().st_size > 5000
        assert (tmp_path / f'{name}.svg').read_text().startswith('<?xml')
    write_report(tmp_path, {**header, 'runs': 7}, records, 'mIoU')
    text = (tmp_path / 'README.md').read_text()
    assert '6 of 7 runs are done.' in text and 'SN pays' not in text
    with pytest.raises(InputError, match="--metric must be one of mIoU, got 'AP'"):
        write_report(tmp_path, header, records, 'AP')


def test_comparisons_are_drawn_side_by_side(tmp_path, monkeypatch, capsys):
    def call(*args: str) -> str:
        with contextlib.suppress(SystemExit):
            main(['plot-norms', *args])
        return ''.join(capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    for number, norms in enumerate((['SN', 'BN'], ['SN', 'GN'])):
        folder = tmp_path / f'out{number}'
        folder.mkdir()
        records = [record(norm, images, 0, 50 + images) for norm in norms for images in (1, 2)]
        (folder / 'runs.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
    assert 'pictures/norms.png' in call('out0', 'out1', '--out', 'pictures/norms')
    drawn = (tmp_path / 'pictures/norms.svg').read_text()
    for text in ('out0', 'out1', 'SN', 'BN', 'GN', 'mIoU'):
        assert f'<!-- {text} -->' in drawn
    assert 'must name each of the 2 comparisons' in call('out0', 'out1', '--labels', 'one')
    assert 'none has no runs.jsonl' in call('none')
    assert '--metric must be one of mIoU' in call('out0', '--metric', 'AP')
    assert '--out must be the name of a figure' in call('out0', '--out', '..')


def test_a_comparison_of_version_1_0_is_drawn_and_not_continued(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = (json.dumps(record('SN', images, 0, 50.0)) + '\n' for images in (1, 2))
    Path('cells.jsonl').write_text(''.join(lines))
    main(['plot-norms', '.', '--out', 'drawn'])
    assert Path('drawn.png').is_file()
    with pytest.raises(SystemExit):
        main(['compare-norms', 'a.py', '--out', '.'])
    (line,) = capsys.readouterr().err.splitlines()
    assert '--out . is a comparison of version 1.0' in line


def test_a_training_with_other_settings_is_not_gone_on_with(segmentation, tmp_path):
    planned = Run('SN', 1, 4, 0)
    cfg = run_config(segmentation, planned, 4)
    folder = tmp_path / 'runs' / planned.name
    folder.mkdir(parents=True)
    comparison.write_found(folder, {'digest': 'of another'})
    with comparison.lock(tmp_path) as held:
        (found,) = comparison.Runner(tmp_path, held, PROGRAM).run([planned], lambda _: cfg)
    assert 'has a training with other settings' in found['error']


def test_results_of_other_settings_are_refused(tmp_path):
    planned = Run('SN', 2, 1, 0)
    args = Namespace(retry_failed=True, batch_average=0, out=tmp_path)
    for other in ({}, {'error': 'x'}):
        done = {planned.name: {**record('SN', 1, 0, 1.0), 'digest': 'old', **other}}
        with pytest.raises(InputError, match='with other settings'):
            list(still_to_run([planned], done, lambda _: Config(), args))
    folder = tmp_path / 'runs' / planned.name
    folder.mkdir(parents=True)
    comparison.write_found(folder, {'digest': 'of a training that was stopped'})
    with pytest.raises(InputError, match='with other settings'):
        list(still_to_run([planned], {}, lambda _: Config(), args))
    with pytest.raises(InputError, match='another spelling'):
        plan_runs(['SN normalizers=[in,ln]', 'SN normalizers=(in,ln)'], 2, [1], 1)


@pytest.mark.parametrize(
    ('norm', 'done', 'asked', 'runs'),
    [
        ('BN', {}, {}, False),
        ('BN', {}, {'batch_average': 10}, True),
        ('BN', {'batch_average_iters': 10}, {'batch_average': 10}, False),
        ('BN', {'batch_average_iters': 10}, {'batch_average': 20}, True),
        ('BN', {'batch_average_iters': 10}, {}, False),
        ('GN num_groups=4', {}, {'batch_average': 10}, False),
        ('SN normalizers=[in,ln]', {}, {'batch_average': 10}, False),
        ('BN', {'error': 'x'}, {'batch_average': 10}, False),
        ('BN', {'error': 'x'}, {'retry_failed': True}, True),
        ('BN', {'batch_average_error': 'x'}, {'batch_average': 10}, False),
        ('BN', {'batch_average_error': 'x'}, {'batch_average': 10, 'retry_failed': True}, True),
        ('BN track_running_stats=False', {}, {'batch_average': 10}, False),
    ],
)
def test_what_is_still_to_run(segmentation, norm, done, asked, runs):
    planned = Run(norm, 2, 1, 0)
    cfg, _ = switch(segmentation, norm, 'existing')
    found = {planned.name: {**record(norm, 1, 0, 1.0), 'digest': digest(cfg), **done}}
    args = Namespace(**{'retry_failed': False, 'batch_average': 0, 'out': Path(), **asked})
    assert list(still_to_run([planned], found, lambda _: cfg, args)) == [planned] * runs


def test_a_failure_that_is_kept_is_said_again():
    runs = [Run(norm, 1, 2, 0) for norm in ('BN', 'GN', 'SN')]
    bn, gn, sn = (planned.name for planned in runs)
    found = {bn: {'error': 'ValueError: one value'}, gn: {'error': 'groups'}, sn: {'metrics': {}}}
    assert failed_before(runs, [runs[1]], found) == [
        f'{bn}: ValueError: one value (of an earlier call; --retry-failed repeats it)'
    ]


@pytest.mark.parametrize(('package', 'extra'), [('mmseg', 'seg'), ('mlxtend', 'demo')])
def test_quick_names_the_extra_that_it_lacks(monkeypatch, package, extra):
    monkeypatch.setattr(compare_norms, 'find_spec', lambda name: None if name == package else name)
    with pytest.raises(InputError, match=f"the package {package}, which the extra '{extra}' of"):
        check_quick()


def test_norm_eval_leaves_batchnorm_no_average(segmentation):
    cfg = Config(segmentation.to_dict())
    cfg.model = {'type': 'mmdet.ResNet', 'norm_cfg': {'type': 'BN'}}  # norm_eval=True by default
    assert not comparison.has_average(cfg)
    cfg.model.norm_eval = False
    assert comparison.has_average(cfg)
    for kind in ('SN', 'SSN'):
        cfg.model.update(norm_eval=True, norm_cfg={'type': kind})
        assert comparison.has_average(cfg)


@pytest.mark.parametrize(
    ('name', 'scaled', 'base'),
    [
        ('a_r50_4xb2-40k_b', None, 8),
        ('a_8xb4_b', {'enable': False, 'base_batch_size': 32}, 32),
        ('mine', {'enable': False, 'base_batch_size': 32}, 32),
        ('mask2former_swin-b-p4-w12-384_8xb2-lsj-50e', {'enable': False}, 16),
        ('mine', None, 6),
        ('resnext101_64x4d', None, 6),
    ],
)
def test_the_batch_that_a_learning_rate_is_for(tmp_path, name, scaled, base):
    path = tmp_path / f'{name}.py'
    path.write_text(f'auto_scale_lr = {scaled}\ntrain_dataloader = dict(batch_size=3)\n')
    assert base_batch_size(Config.fromfile(path), 2)[0] == base


def test_a_batch_that_is_stated_twice_must_be_one(tmp_path):
    path = tmp_path / 'rtmdet_l_8xb32.py'
    path.write_text('auto_scale_lr = dict(base_batch_size=16)\n')
    with pytest.raises(InputError, match='16 images by its auto_scale_lr and for 256 by its name'):
        base_batch_size(Config.fromfile(path), 2)


LAZY = """
from mmengine.hooks import CheckpointHook
from mmengine.optim import CosineAnnealingLR
from torch.optim import SGD
model = dict()
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=10)
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.1))
param_scheduler = [
    dict(type=CosineAnnealingLR, eta_min=0.01, begin=0, end=10, T_max=10, by_epoch=False)]
default_hooks = dict(checkpoint=dict(type=CheckpointHook, interval=1, by_epoch=True))
"""


def test_a_lazy_config_makes_cells(tmp_path):
    (tmp_path / 'lazy.py').write_text(LAZY)
    cfg = Config.fromfile(tmp_path / 'lazy.py', lazy_import=True)
    check_config(cfg)
    planned = run_config(cfg, Run('SN', 1, 1, 0), base_batch=2)
    planned.dump(tmp_path / 'run.py')
    dumped = Config.fromfile(tmp_path / 'run.py')
    (scheduler,) = dumped.param_scheduler
    assert (scheduler.eta_min, scheduler.end, scheduler.T_max) == (0.005, 20, 20)
    assert dumped.default_hooks.checkpoint.save_last
    assert settings_of(cfg)['optimizer'] == 'SGD' and len(digest(planned)) == 12


PRETRAINED = {'type': 'Pretrained', 'checkpoint': 'there.pth'}


@pytest.mark.parametrize(
    ('norm', 'backbone', 'said'),
    [
        ('BN', {}, []),
        ('GN', {'base_channels': 32}, ['32 groups.']),
        ('BN', {'norm_eval': True}, ['model.backbone.norm_eval=True', 'it normalizes nothing']),
        (
            'BN',
            {'norm_eval': True, 'init_cfg': PRETRAINED},
            ['model.backbone.norm_eval=True', 'starts from, those of there.pth'],
        ),
        ('SN', {'norm_eval': True}, ['the importance has', 'a learning rate of its own']),
        ('SN importance_lr_mult=30', {}, ['of its own, 30 times the others']),
        ('SN normalizers=[bn]', {}, []),
        (
            'GN num_groups=4',
            {'init_cfg': PRETRAINED, 'frozen_stages': 1},
            ['there.pth, if they are SN, have other names', 'frozen_stages=1 keeps those of its'],
        ),
        (
            'SN',
            {'init_cfg': PRETRAINED, 'frozen_stages': 1},
            ['model.backbone.frozen_stages=1 with the weights of there.pth'],
        ),
        (
            'GN num_groups=4',
            {'init_cfg': PRETRAINED, 'norm_cfg': {'type': 'SN', 'requires_grad': False}},
            ['weight 1 and bias 0, and requires_grad=False keeps them so'],
        ),
        (
            'BN',
            {
                'init_cfg': PRETRAINED,
                'norm_eval': True,
                'norm_cfg': {'type': 'GN', 'num_groups': 4},
            },
            ['starts from, mean 0 and variance 1', 'if they are GN, have other names'],
        ),
    ],
)
def test_the_report_says_where_norms_are_not_compared_like_for_like(
    segmentation, norm, backbone, said
):
    cfg = Config(segmentation.to_dict())
    cfg.model.backbone.update(backbone)
    if norm == 'GN':
        cfg.merge_from_dict({
            'model.decode_head': {'in_channels': 256, 'channels': 32},
            'model.auxiliary_head': {'in_channels': 128, 'channels': 32},
            'model.backbone.stem_channels': 64,
        })  # fmt: skip
    notes = switch(cfg, norm, 'existing')[1]
    text = '\n'.join(notes)
    assert bool(notes) is bool(said) and all(part in text for part in said), text


def test_syncbn_of_a_cpu_is_named_in_the_report(segmentation, monkeypatch):
    monkeypatch.setattr('sn_mm.compare.plan.get_device', lambda: 'cpu')
    (note,) = switch(segmentation, 'SyncBN', 'existing')[1]
    assert note.startswith('on the CPU') and 'SN over `bn` alone' in note


def test_norms_that_stay_are_named():
    left = SwitchReport(left=[Left('model.a', 'LN', 'other'), Left('model.b', 'LN', 'other')])
    assert notes_of('BN', {'type': 'BN'}, Config({'model': {}}), SwitchReport(), left) == [
        'model.a and 1 more stay LN: other.'
    ]


def test_what_holds_for_several_norms_is_said_once(segmentation):
    cfg = Config(segmentation.to_dict())
    cfg.model.backbone.norm_eval = True
    configs = Configs(cfg, 4, 'existing')
    note, importance = configs.notes(['BN', 'SN', 'BN eps=1e-3'])
    assert importance.startswith('`SN`: optim_wrapper: the importance has')
    assert note.startswith('`BN`, `BN eps=1e-3`: model.backbone.norm_eval=True reaches')
    cfg.load_from = 'there.pth'
    (note,) = Configs(cfg, 4, 'existing').notes(['GN num_groups=4'])
    assert note.startswith('`GN num_groups=4`: model.backbone, model.decode_head, model.aux')


def test_a_failed_batch_average_leaves_the_other_results(segmentation, tmp_path, monkeypatch):
    planned = Run('BN', 1, 1, 0)
    cfg, _ = switch(segmentation, 'BN', 'existing')
    folder = tmp_path / 'runs' / planned.name
    folder.mkdir(parents=True)
    metrics = {'mIoU': 50.0}
    done = {'digest': digest(cfg), 'checkpoint': 'deleted.pth', 'metrics': metrics, 'loss': 1.0}
    comparison.write_found(folder, done)
    with comparison.lock(tmp_path) as held:
        runner = comparison.Runner(tmp_path, held, PROGRAM, batch_average=5)
        (found,) = runner.run([planned], lambda _: cfg)
    assert 'error' not in found and found['metrics'] == metrics
    assert 'deleted.pth' in found['batch_average_error']
    assert comparison.read_found(folder) == done


def test_a_training_that_logged_nothing_has_not_diverged(tmp_path):
    assert comparison.read_scalars(tmp_path) == {'seconds_per_iteration': None}
    short = {**record('SN', 1, 0, 50.0), 'seconds_per_iteration': None}
    del short['loss']
    assert group([short], 'mIoU')['SN', 1].diverged == 0


def test_the_importance_is_read_in_the_layers_order(tmp_path):
    layer = sn_mm.SwitchNorm2d(4, normalizers=['ln', 'in'], init_importance={'in': 0.98})
    torch.save({'state_dict': {f'a.{k}': v for k, v in layer.state_dict().items()}}, tmp_path / 'a')
    for given in (['ln', 'in'], 'in,ln'.split(',')):
        cfg = Config({'model': {'norm_cfg': {'type': 'SN', 'normalizers': given}}})
        found = comparison.read_importance(cfg, tmp_path / 'a')
        assert found['mean']['in'] == pytest.approx(0.98)


def test_a_record_that_was_cut_off_does_not_count(tmp_path):
    lines = [json.dumps(record('SN', 1, seed, 1.0)) for seed in range(2)]
    (tmp_path / 'runs.jsonl').write_text(lines[0] + '\n' + lines[1][:-20])
    assert list(finished(tmp_path)) == ['SN-2x1-seed0']
    append_record(tmp_path / 'runs.jsonl', record('SN', 1, 2, 1.0))
    append_record(tmp_path / 'runs.jsonl', record('SN', 1, 3, 1.0))
    assert list(finished(tmp_path)) == [f'SN-2x1-seed{seed}' for seed in (0, 2, 3)]


@pytest.mark.parametrize(
    ('log', 'code', 'reason'),
    [
        ('Traceback\n  File\nValueError: no\nChildFailedError: x', 1, 'ValueError: no'),
        ('sn-mm train: error: no such file', 2, 'no such file'),
        ('[rank1]: torch.OutOfMemoryError: much', 1, 'torch.OutOfMemoryError: much'),
        ('  exitcode  : -9 (pid: 1)', 1, 'ended by SIGKILL'),
        ('', 3, 'ended with exit status 3'),
    ],
)
def test_the_reason_of_a_failure_is_one_line(log, code, reason):
    assert reason_of(log, code) == reason


def test_one_comparison_works_in_a_folder(tmp_path):
    held = comparison.lock(tmp_path)
    with pytest.raises(InputError, match='another comparison, .* is at work in'):
        comparison.lock(tmp_path)
    child = subprocess.Popen(['sleep', '60'], pass_fds=[held.fileno()])
    held.close()
    try:
        with pytest.raises(InputError, match='at work'):
            comparison.lock(tmp_path)
    finally:
        child.kill()
        child.wait()
    comparison.lock(tmp_path).close()


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], 'CONFIG or --quick is needed, and not both'),
        (['det.py', '--quick'], 'CONFIG or --quick is needed, and not both'),
        (['none.py'], 'none.py'),
        (['det.py', '--images', '0'], "a whole number of at least 1 is allowed, got '0'"),
        (['det.py', '--norms', 'LN'], 'LN'),
        (['det.py', '--norms', 'SN sync'], 'SN sync'),
        (['det.py', '--out', 'seg.py'], '--out: seg.py is a file, a folder is needed'),
    ],
)
def test_bad_input_is_one_line(folder, arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as stop:
        main(['compare-norms', *arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if 'mmengine' not in line]
    assert stop.value.code == 2 and said in lines[-1]
    assert not (folder / 'work_dirs').exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_comparison_that_is_killed_goes_on(folder, monkeypatch, capfd):
    command = [
        'compare-norms', 'det.py', '--norms', 'SN', 'GN num_groups=3',
        'BN', '--processes', '1', '--images', '2', '--seeds', '1', '--out', 'out',
    ]  # fmt: skip
    process = start(folder, *PROGRAM, *command)
    runs = folder / 'out/runs.jsonl'
    deadline = time.monotonic() + 300
    while not (runs.is_file() and runs.read_text().count('\n') >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    before = runs.read_text().splitlines()

    def call(*options: str) -> str:
        main([*command, *options])
        return capfd.readouterr().out

    monkeypatch.chdir(folder)
    assert '1 x 2: not decided by these seeds: box AP' in call()
    after = runs.read_text().splitlines()
    assert after[: len(before)] == before
    found = {r['norm']: r for r in map(json.loads, after)}
    assert set(found) == {'SN', 'GN num_groups=3', 'BN'} and len(after) == 3
    assert 'must be divisible by num_groups (3)' in found['GN num_groups=3']['error']
    for norm in ('SN', 'BN'):
        assert math.isfinite(found[norm]['loss']) and found[norm]['peak_memory_mib'] > 100
    shares = found['SN']['importance']['mean']
    assert sum(shares.values()) == pytest.approx(1)
    text = Path('out/README.md').read_text()
    assert '| `GN num_groups=3` | - [1] |' in text and '[1] does not run' in text

    trained = Path('out/runs/SN-1x2-seed0/train/last_checkpoint').stat().st_mtime_ns
    out = call('--batch-average', '2')
    records = finished(Path('out'))
    assert [r['norm'] for r in records.values() if 'batch_average' in r] == ['SN']
    again = Path('out/runs/SN-1x2-seed0/train/last_checkpoint').stat().st_mtime_ns
    assert trained == again
    assert re.search(r'must be divisible by num_groups \(3\) .*--retry-failed', out)
    assert '`BN`: model.backbone.norm_eval=True reaches BatchNorm alone' in out
    assert 'With the batch average' in Path('out/README.md').read_text()

    for options, said in (
        (['--metric', 'AP'], '--metric must be one of coco/bbox_mAP'),
        (
            ['--cfg-options', 'optim_wrapper.optimizer.lr=0.1'],
            '--out has a training of SN, 1 x 2, seed 0 with other settings',
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            call(*options)
        assert stop.value.code == 2 and said in capfd.readouterr().err
