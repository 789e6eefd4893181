"""One step in this process: ``python -m checks.gpu.step NAME OUT.jsonl [--quick]``.

Writes one line of JSON for each record as soon as it is there, and a last line that says how the
step ended: ``{"end": "done"}``, ``{"end": "failed", "reason": ...}`` or ``{"end": "not measured",
"reason": ...}``.
"""

from __future__ import annotations

import json
import sys
import traceback
from importlib import import_module

import torch


class NotMeasured(Exception):
    """This machine cannot do the step; the message says why."""


class Failed(Exception):
    """The step shows a fault; the message names it."""


def one_line(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'.strip().splitlines()[0][:200]


def main() -> None:
    name, out, *options = sys.argv[1:]
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if device.type == 'cpu':
        torch.set_num_threads(1)  # small tensors: threads only wait for each other
    with open(out, 'w', encoding='utf-8', buffering=1) as file:
        end = {'end': 'done'}
        try:
            for record in import_module(f'checks.gpu.{name}').run(device, '--quick' in options):
                file.write(json.dumps(record) + '\n')
        except NotMeasured as error:
            end = {'end': 'not measured', 'reason': str(error)}
        except Failed as error:
            end = {'end': 'failed', 'reason': str(error)}
        except BaseException as error:
            traceback.print_exc()
            end = {'end': 'failed', 'reason': one_line(error)}
        file.write(json.dumps(end) + '\n')
    sys.exit(end['end'] == 'failed')


if __name__ == '__main__':
    # The steps import this module by its name: their exceptions must be the ones caught here.
    import_module('checks.gpu.step').main()
