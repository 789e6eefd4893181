"""Kills trainings at random moments, resumes them and compares them with undisturbed ones.

    python tools/check_resume.py    # 20 kills on one process, 20 on two
    python tools/check_resume.py --models detection --kills 5 --processes 1

Small real models of MMSegmentation and MMDetection train through tools/train.py. SIGKILL ends all
their processes, every second time while a checkpoint is being written. After each kill every
checkpoint must be complete; at the end weights, SN's buffers and importance weights and the
optimizer must equal those of an undisturbed run bit for bit. Prints a table; a difference makes the
exit status 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from pathlib import Path

from resume.configs import MODELS, make_scenes, write_config
from resume.kills import HEAD, endure
from sn_mm.cli.errors import report_input_errors
from sn_mm.errors import check_positive_int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Kill and resume trainings, and compare them with undisturbed ones.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--models', nargs='+', choices=MODELS, default=['segmentation'])
    parser.add_argument('--kills', type=int, default=20, help='of each model and number')
    parser.add_argument('--processes', nargs='+', type=int, default=[1, 2])
    parser.add_argument('--seed', type=int, default=0, help='chooses the moments')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/resume'))
    args = parser.parse_args()
    check_positive_int('--kills', args.kills)
    for processes in args.processes:
        check_positive_int('--processes', processes)
    return args


@report_input_errors
def main() -> None:
    args = parse_args()
    make_scenes(args.work_dir / 'scenes')
    rng = random.Random(args.seed)
    records = []
    for model in args.models:
        for processes in args.processes:
            folder = args.work_dir / f'{model}-{processes}'
            shutil.rmtree(folder, ignore_errors=True)
            config = folder / f'{model}.py'
            write_config(model, args.work_dir / 'scenes', config)
            records.append(endure(model, config, folder, processes, args.kills, rng))
    print(HEAD, *(record.row() for record in records), sep='\n')
    if any(record.faults for record in records):
        sys.exit(1)


if __name__ == '__main__':
    main()
