"""Sums up the demo: the figures of its two tests, and where its pictures are."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import mmcv
import numpy as np
from rich.console import Console
from rich.table import Table

from sn_mm.cli.errors import report_input_errors
from sn_mm.errors import InputError

# The figures, and the values that the demo must reach.
METRICS = {
    'coco/bbox_mAP': ('box AP', None),
    'coco/bbox_mAP_50': ('box AP50', 0.40),
    'coco/segm_mAP': ('mask AP', None),
    'coco/segm_mAP_50': ('mask AP50', 0.35),
    'mIoU': ('mIoU', 0.50),
}


def parse_args() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('detection', type=Path, help='work dir of the Mask R-CNN')
    parser.add_argument('segmentation', type=Path, help='work dir of the DeepLabV3+')
    parser.add_argument('--seconds', type=int, required=True, help='duration to report')
    parser.add_argument('--expect', action='store_true', help='fail below the expected figures')
    return parser.parse_args()


def read_metrics(work_dir: Path) -> dict[str, float]:
    """Reads the figures of `sn-mm test` in ``work_dir/test``; mIoU as a share."""
    file = work_dir / 'test' / 'metrics.json'
    if not file.is_file():
        raise InputError(f'{file} does not exist: sn-mm test --work-dir {file.parent} writes it')
    metrics = json.loads(file.read_text())
    return {k: v / 100 if k == 'mIoU' else v for k, v in metrics.items() if k in METRICS}


def contact_sheet(work_dir: Path, columns: int = 2, rows: int = 4) -> Path:
    """Tiles the first pictures of ground truth beside prediction into one."""
    pictures = sorted(
        path for path in (work_dir / 'predictions').rglob('*') if path.suffix in ('.png', '.jpg')
    )
    images = [mmcv.imrescale(mmcv.imread(str(p)), 2.0) for p in pictures[: columns * rows]]
    rows = len(images) // columns
    if rows == 0:
        raise SystemExit(f'{work_dir}/predictions has fewer than {columns} pictures')
    sheet = np.concatenate(
        [np.concatenate(images[r * columns : (r + 1) * columns], axis=1) for r in range(rows)]
    )
    path = work_dir / 'predictions.png'
    mmcv.imwrite(sheet, str(path))
    return path


@report_input_errors
def main() -> None:
    args = parse_args()
    measured = {**read_metrics(args.detection), **read_metrics(args.segmentation)}
    table = Table('figure', 'measured', title='Switchable Normalization demo')
    if args.expect:
        table.add_column('at least')
    missed = []
    for key, (name, expected) in METRICS.items():
        bound = ['' if expected is None else f'{expected:.2f}'] if args.expect else []
        table.add_row(name, f'{measured[key]:.3f}', *bound)
        if args.expect and expected is not None and not measured[key] >= expected:
            missed.append(f'{name} {measured[key]:.3f} < {expected:.2f}')
    table.add_row('time', f'{args.seconds // 60} min {args.seconds % 60:02d} s')
    console = Console()
    console.print(table)
    for work_dir in (args.detection, args.segmentation):
        for picture in (contact_sheet(work_dir), *sorted(work_dir.glob('importance/*.png'))):
            console.print(str(picture), soft_wrap=True)
    if missed:
        raise SystemExit('the demo fell short: ' + ', '.join(missed))


if __name__ == '__main__':
    main()
