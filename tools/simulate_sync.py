"""What synchronising the norms of Mask R-CNN R50-FPN costs, for 8 to 4096 ranks.

    python tools/simulate_sync.py
    python tools/simulate_sync.py --ranks 8 32 --alpha 3 --bandwidth 50 --json
    python tools/simulate_sync.py --measure 4

compares SN's collectives (forward and backward one all_reduce) with those of nn.SyncBatchNorm
(forward an all_gather, backward an all_reduce), in bytes by arithmetic and in time by the
alpha-beta model. --measure runs both among gloo processes on this machine.
"""

from __future__ import annotations

import json
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from benchmark.sync_measure import measure
from benchmark.sync_model import (
    ALGORITHMS,
    ALPHA,
    BANDWIDTH,
    RANKS,
    SCHEMES,
    mask_rcnn_channels,
    simulate,
)
from sn_mm.cli.errors import report_input_errors
from sn_mm.cli.machine import describe
from sn_mm.errors import InputError

MEASURABLE = range(2, 9)
WIDTH = 130  # in a file or a pipe


def make_table(records: Sequence[dict[str, Any]]) -> Table:
    table = Table(title='A training step on each rank: SN / SyncBatchNorm')
    table.add_column('ranks', justify='right')
    for name in ('results forward, MB', 'received, ring, MB', *(f'{a}, ms' for a in ALGORITHMS),
                 'fastest, ms'):  # fmt: skip
        table.add_column(name, justify='right')
    for record in records:
        schemes = [record[scheme] for scheme in SCHEMES]

        def pair(*values: float, digits: int) -> str:
            return ' / '.join(f'{value:,.{digits}f}' for value in values)

        table.add_row(
            str(record['ranks']),
            pair(*(s['forward_bytes'] / 1e6 for s in schemes), digits=2),
            pair(*(s['received_bytes']['ring'] / 1e6 for s in schemes), digits=2),
            *(pair(*(1e3 * s['seconds'][a] for s in schemes), digits=1) for a in ALGORITHMS),
            pair(*(1e3 * min(s['seconds'].values()) for s in schemes), digits=1),
        )
    return table


def make_measured_table(record: dict[str, Any]) -> Table:
    table = Table(title=f'Measured: {record["ranks"]} gloo processes, medians of a training step')
    table.add_column('norms')
    for name in ('forward, MB', 'backward, MB', 'forward, ms', 'backward, ms', 'both, ms',
                 'model of a ring, ms'):  # fmt: skip
        table.add_column(name, justify='right')
    for scheme in SCHEMES:
        of = record[scheme]
        forward, backward = of['forward_seconds'], of['backward_seconds']
        table.add_row(
            scheme,
            f'{of["forward_bytes"] / 1e6:.2f}',
            f'{of["backward_bytes"] / 1e6:.2f}',
            *(f'{1e3 * t:.2f}' for t in (forward, backward, forward + backward)),
            f'{1e3 * of["model_seconds"]:.2f}',
        )
    table.caption = (
        f'The model with alpha = {1e6 * record["alpha"]:.1f} us and '
        f'{record["bandwidth"] / 1e9:.2f} GB/s, from all_reduces of 64 numbers and one of 8 MB'
    )
    return table


def parse_args() -> Namespace:
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--ranks', type=int, nargs='+', default=list(RANKS),
                        help='numbers of ranks (%(default)s)')  # fmt: skip
    parser.add_argument('--alpha', type=float, default=1e6 * ALPHA, metavar='MICROSECONDS',
                        help='time of a message without content (%(default)g)')  # fmt: skip
    parser.add_argument('--bandwidth', type=float, default=BANDWIDTH / 1e9, metavar='GB/S',
                        help='what a rank receives (%(default)g)')  # fmt: skip
    parser.add_argument('--measure', type=int, metavar='R',
                        help='run the collectives among R gloo processes, 2 to 8')  # fmt: skip
    parser.add_argument('--repeats', type=int, default=15,
                        help='training steps that --measure takes (%(default)s)')  # fmt: skip
    parser.add_argument('--json', action='store_true', help='print JSON, not tables')
    args = parser.parse_args()
    for ranks in args.ranks:
        if ranks < 2:
            raise InputError(f'--ranks must be at least 2, got {ranks}')
    if not 0 <= args.alpha < math.inf:
        raise InputError(f'--alpha must be at least 0, got {args.alpha:g}')
    if not args.bandwidth > 0:
        raise InputError(f'--bandwidth must be above 0, got {args.bandwidth:g}')
    if args.repeats < 1:
        raise InputError(f'--repeats must be at least 1, got {args.repeats}')
    if args.measure is not None:
        if args.measure not in MEASURABLE:
            raise InputError(f'--measure must be 2 to 8 processes, got {args.measure}')
        if not (dist.is_available() and dist.is_gloo_available()):
            raise InputError('--measure needs gloo, which this build of torch does not have')
    return args


@report_input_errors
def main() -> None:
    args = parse_args()
    channels = mask_rcnn_channels()
    alpha, bandwidth = args.alpha * 1e-6, args.bandwidth * 1e9
    records = [simulate(channels, ranks, alpha, bandwidth) for ranks in args.ranks]
    measured = None
    if args.measure is not None:
        described = describe(torch.device('cpu'))
        measured = {'machine': described, **measure(channels, args.measure, args.repeats)}
    if args.json:
        print(json.dumps({
            'layers': len(channels), 'channels': sum(channels), 'alpha': alpha,
            'bandwidth': bandwidth, 'simulated': records, 'measured': measured,
        }, indent=1))  # fmt: skip
        return
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(f'{len(channels)} norms of {sum(channels)} channels in all, '
                  f'alpha {args.alpha:g} us, {args.bandwidth:g} GB/s')  # fmt: skip
    console.print(make_table(records))
    if measured:
        console.print(make_measured_table(measured))
        machine = measured['machine']
        console.print(f'{machine["cpu"]}, {machine["cores"]} cores, torch {machine["torch"]}')


if __name__ == '__main__':
    main()
