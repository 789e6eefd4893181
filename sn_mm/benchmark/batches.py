"""Small made-up batches with ground truth, as each kind of model takes them for training.

Boxes and masks come from mmdet.testing. mmsegmentation's wheel ships nothing of the kind.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config

from .configs import find

BATCH_SIZE = 2
_PATCH = 16  # side in pixels of the patches of one class in semantic maps
_PANOPTIC = ('num_things_classes', 'num_stuff_classes')


def make_batch(cfg: Config, size: int) -> dict[str, Any]:
    """Makes a batch as the data loader does for one training step, before the data preprocessor.

    Args:
        cfg: A config of mmdet, mmseg or mmpretrain. Its training pipeline tells whether masks and
            semantic maps are there.
        size: Height and width of the images in pixels.

    Returns:
        ``inputs`` and ``data_samples`` of :data:`BATCH_SIZE` images, or videos of two frames.
    """
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    kind = preprocessor.get('type')
    if kind == 'SegDataPreProcessor':
        return _segmentation_batch(cfg, size)
    if kind == 'ClsDataPreprocessor' or cfg.get('default_scope') == 'mmpretrain':
        return _classification_batch(cfg, size)
    if kind == 'ReIDDataPreprocessor':
        return _reid_batch(cfg, size)
    if kind == 'MultiBranchDataPreprocessor':
        return _semi_supervised_batch(cfg, size)
    if kind == 'TrackDataPreprocessor' and not preprocessor.get('use_det_processor'):
        return _video_batch(cfg, size)
    return _detection_batch(cfg, size)


def loads(cfg: Config, what: str) -> bool:
    """Whether the training pipeline loads ``'mask'`` or ``'seg'`` annotations."""
    training = [cfg.get('train_dataloader'), cfg.get('train_pipeline')]
    panoptic = 'LoadPanopticAnnotations' in find(training, 'type')
    return panoptic or True in find(training, f'with_{what}')


def _num_classes(model: Any) -> int:
    """The fewest classes that any part of a model tells apart."""
    return min((n for n in find(model, 'num_classes') if isinstance(n, int) and n > 0), default=1)


def _semantic_map(size: int, classes: int, stride: int = 1) -> torch.Tensor:
    """Random classes in square patches: (1, size / stride, size / stride)."""
    side = -(-size // _PATCH)
    patches = torch.randint(classes, (1, side, side))
    pixels = patches.repeat_interleave(_PATCH, 1).repeat_interleave(_PATCH, 2)
    return pixels[:, :size:stride, :size:stride].contiguous()


def _detection_batch(cfg: Config, size: int) -> dict[str, Any]:
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals
    from mmengine.structures import PixelData

    shape = (3, size, size)
    classes = _num_classes({k: v for k, v in cfg.model.items() if k != 'data_preprocessor'})
    data = demo_mm_inputs(
        BATCH_SIZE,
        shape,
        num_items=[3, 4],
        num_classes=max(classes, 2),
        with_mask=loads(cfg, 'mask'),
    )
    for sample in data['data_samples']:
        sample.gt_instances.labels %= classes
        sample.ignored_instances = sample.ignored_instances[:0]
        if loads(cfg, 'seg'):
            # HTC's semantic loss takes maps at an eighth, its pipeline's last step but one.
            stride = 8 if True in (v == 0.125 for v in find(cfg.model, 'seg_scale_factor')) else 1
            kinds = sum(max(find(cfg.model, key), default=0) for key in _PANOPTIC)
            sample.gt_sem_seg = PixelData(sem_seg=_semantic_map(size, kinds or classes, stride))
    if cfg.model.type == 'FastRCNN':
        proposals = demo_mm_proposals([shape] * BATCH_SIZE, 32)
        for sample, proposal in zip(data['data_samples'], proposals):
            sample.proposals = proposal
    return data


def _video_batch(cfg: Config, size: int) -> dict[str, Any]:
    from mmdet.testing import demo_track_inputs

    data = demo_track_inputs(
        BATCH_SIZE,
        num_frames=2,
        key_frames_inds=[0],
        image_shapes=(3, size, size),
        num_items=[3, 4],
        num_classes=_num_classes(cfg.model),
        with_mask=loads(cfg, 'mask'),
    )
    return data


def _semi_supervised_batch(cfg: Config, size: int) -> dict[str, Any]:
    branches = {
        branch: _detection_batch(cfg, size) for branch in ('sup', 'unsup_teacher', 'unsup_student')
    }
    for data in branches.values():
        for sample in data['data_samples']:
            sample.set_metainfo({'homography_matrix': torch.eye(3).numpy()})
    return {
        key: {branch: data[key] for branch, data in branches.items()}
        for key in ('inputs', 'data_samples')
    }


def _classification_batch(cfg: Config, size: int) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    labels = torch.randint(_num_classes(cfg.model), (BATCH_SIZE,)).tolist()
    return {
        'inputs': [torch.randint(256, (3, size, size), dtype=torch.uint8) for _ in labels],
        'data_samples': [DataSample().set_gt_label(label) for label in labels],
    }


def _reid_batch(cfg: Config, size: int) -> dict[str, Any]:
    from mmdet.structures import ReIDDataSample

    labels = [0, 0, 1, 1]
    samples = [ReIDDataSample().set_gt_label(label) for label in labels]
    return {
        'inputs': [torch.randint(256, (3, size, size), dtype=torch.uint8) for _ in labels],
        'data_samples': samples,
    }


def _segmentation_batch(cfg: Config, size: int) -> dict[str, Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    classes = _num_classes([cfg.model.get('decode_head'), cfg.model.get('auxiliary_head')])
    samples = []
    for _ in range(BATCH_SIZE):
        sample = SegDataSample(metainfo={'img_shape': (size, size), 'ori_shape': (size, size)})
        sample.gt_sem_seg = PixelData(data=_semantic_map(size, max(classes, 2)))
        sample.gt_edge_map = PixelData(data=torch.randint(2, (1, size, size)))
        sample.gt_depth_map = PixelData(data=torch.rand(1, size, size) * 10)
        samples.append(sample)
    channels = len(cfg.model.data_preprocessor.get('mean') or 'RGB')
    images = [torch.randint(256, (channels, size, size), dtype=torch.uint8) for _ in samples]
    return {'inputs': images, 'data_samples': samples}
