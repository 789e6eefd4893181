"""Measures how exact SN is on hard inputs, beside torch's normalization layers.

    python tools/check_numerics.py            # some minutes
    python tools/check_numerics.py --quick    # small inputs, a draw of each

runs SN by every backend, BatchNorm, GroupNorm and InstanceNorm on the same inputs (large offsets
and scales, constant channels, a hot pixel, half precision, single elements, long channels), and
compares outputs, gradients and running statistics with float64. The bound: SN's relative error is
at most twice BatchNorm's own, or 1e-6. Ends with exit status 1 where one is beyond it. Prints
Markdown.

Triton's kernels run in its interpreter, on small inputs. It truncates to bfloat16, where a GPU
rounds: there the bound is 2^-7.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace

import torch
from rich.console import Console
from rich.progress import track

from numerics.errors import QUANTITIES, Record, measure
from numerics.inputs import FORMATS, cases
from numerics.layers import Layer, sn_layers
from numerics.tables import errors_of, shares_of_bound
from sn_mm.cli.errors import report_input_errors
from sn_mm.cli.machine import describe

DRAWS = 4
SHOWN = ('y', 'dx')


def run(small: bool, draws: int, backends: dict[str, Layer]) -> list[Record]:
    chosen = [(case, memory_format) for case in cases(small) for memory_format in FORMATS]
    title = f'{"Small" if small else "Large"} inputs'
    return [
        record
        for case, memory_format in track(chosen, title, console=Console(stderr=True))
        for record in measure(case, memory_format, draws, backends)
    ]


def print_tables(title: str, records: list[Record], backends: list[str], all_of_them: bool) -> int:
    """Returns the number of comparisons beyond their bound."""
    print(f'## {title}\n')
    for quantity in QUANTITIES if all_of_them else SHOWN:
        for memory_format in FORMATS:
            print(errors_of(quantity, memory_format, records, backends), end='\n\n')
    print(shares_of_bound(records, backends), end='\n\n')
    shares = [(share, record, k) for record in records for k, share in record.shares.items()]
    beyond = [entry for entry in shares if not entry[0] <= 1]
    print(f'{len(shares) - len(beyond)} of {len(shares)} comparisons are within the bound.\n')
    for share, record, backend in beyond:
        print(f'- BEYOND: {record.case}, {record.memory_format}, {record.quantity}, SN {backend}: '
              f'{record.errors[backend]:.1e}, {share:.2f} times the bound')  # fmt: skip
    return len(beyond)


def parse_args() -> Namespace:
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--quick', action='store_true', help='small inputs only, one draw of the noise'
    )
    parser.add_argument(
        '--all', action='store_true', help=f'a table of every quantity ({" and ".join(SHOWN)})'
    )
    return parser.parse_args()


@report_input_errors
def main() -> None:
    args = parse_args()
    if os.environ.get('TRITON_INTERPRET') != '1':  # read when Triton is first imported
        os.execve(sys.executable, [sys.executable, *sys.argv],
                  {**os.environ, 'TRITON_INTERPRET': '1'})  # fmt: skip
    torch.set_num_threads(1)
    machine = describe(torch.device('cpu'))
    print(f'{machine["cpu"]}, torch {machine["torch"]}, one thread\n')
    beyond = 0
    if not args.quick:
        backends = sn_layers(with_triton=False)
        beyond += print_tables('Large', run(False, DRAWS, backends), list(backends), args.all)
    backends = sn_layers(with_triton=True)
    records = run(True, 1 if args.quick else DRAWS, backends)
    beyond += print_tables('Small', records, list(backends), args.all)
    sys.exit(1 if beyond else 0)


if __name__ == '__main__':
    main()
