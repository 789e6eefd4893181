"""Tests a checkpoint of MMDetection, MMSegmentation or another MMEngine toolbox; SN is registered.

The figures are printed and written to metrics.json in the work dir.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.fileio import dump
from mmengine.registry import METRICS

from ..atomic import atomic_path
from ..errors import InputError
from ..output.files import check_file, check_folder
from ..switch.toolbox import toolbox
from .checkpoint import check_checkpoint, downloading, load_strictly
from .config import load_config
from .data import build_loops, check_data
from .errors import report_input_errors
from .launch import build_runner, launched
from .norm_option import switch_norms


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Turns on the config's visualization hook, with each toolbox's own place for the pictures."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise InputError('--show and --show-dir need default_hooks.visualization in the config')
    hook.draw = True
    if show:
        hook.update(show=True, wait_time=wait_time)
    if show_dir and toolbox(cfg) == 'mmdet':
        hook.test_out_dir = show_dir
    elif show_dir:
        cfg.visualizer.save_dir = show_dir


def enable_tta(cfg: Config) -> None:
    """Wraps the model for test-time augmentation; without a recipe in the config, mmdet's flips."""
    if toolbox(cfg) == 'mmdet':
        nms = {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100}
        cfg.setdefault('tta_model', {'type': 'DetTTAModel', 'tta_cfg': nms})
        cfg.setdefault('tta_pipeline', flip_pipeline(cfg.test_dataloader.dataset))
    if not (cfg.get('tta_model') and cfg.get('tta_pipeline')):
        raise InputError('--tta needs tta_model and tta_pipeline in the config')
    cfg.model = ConfigDict(cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def flip_pipeline(dataset: ConfigDict) -> list[dict]:
    """The pipeline of a detection data set, ending in each image with and without a flip."""
    while 'dataset' in dataset:
        dataset = dataset.dataset
    image = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    flips = [{'type': 'RandomFlip', 'prob': prob} for prob in (1.0, 0.0)]
    pack = [{'type': 'PackDetInputs', 'meta_keys': (*image, 'flip', 'flip_direction')}]
    return [*dataset.pipeline[:-1], {'type': 'TestTimeAug', 'transforms': [flips, pack]}]


def write_label_maps(cfg: Config, folder: str) -> None:
    """Lets mmseg's metrics write their label maps, as its own script does."""
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    for metric in metrics:
        metric.update(output_dir=folder, keep_results=True)


def test(cfg: Config, predictions: str | None) -> None:
    """Tests, and writes metrics.json into the work dir and predictions into a pickle, if named."""
    runner = build_runner(cfg)
    load_strictly(runner)
    build_loops(runner, ['test'])
    if predictions:
        dumper = 'mmdet.DumpDetResults' if toolbox(cfg) == 'mmdet' else 'DumpResults'
        metric = METRICS.build({'type': dumper, 'out_file_path': predictions})
        runner.test_evaluator.metrics.append(metric)
    metrics = runner.test()
    if is_main_process():  # mmengine's own file is written by all ranks at once
        with atomic_path(Path(cfg.work_dir) / 'metrics.json') as path:
            dump(metrics, path)


@report_input_errors
def run(args: Namespace) -> None:
    cfg = load_config(args, 'test')
    switch_norms(cfg, args)
    to_pickle = args.out is not None and args.out.endswith(('.pkl', '.pickle'))
    if args.out and not to_pickle:
        if toolbox(cfg) != 'mmseg':
            raise InputError(f'--out must end in .pkl or .pickle, got {args.out!r}')
        check_folder('--out', args.out)
        write_label_maps(cfg, args.out)
    if to_pickle:
        check_file('--out', args.out)
    if args.show_dir:
        check_folder('--show-dir', args.show_dir)
    if args.show or args.show_dir:
        draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        enable_tta(cfg)
    check_checkpoint(args.checkpoint)
    cfg.load_from, cfg.resume = args.checkpoint, False
    check_data(cfg, ['test'])
    with launched(cfg), downloading(cfg.model, cfg.load_from):
        test(cfg, args.out if to_pickle else None)
