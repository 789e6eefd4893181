"""``sn-mm COMMAND ...``: the commands under one name, with the flags that they have in tools/."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

from ..errors import InputError
from .errors import report_input_errors

COMMANDS = {
    'train': 'Train a model.',
    'test': 'Test (and evaluate) a model.',
    'batch-average': "Replace a checkpoint's moving average by a batch average.",
    'compare-norms': 'Train with one norm after the other: which one pays?',
    'plot-norms': 'Draw comparisons of norms side by side.',
    'plot-importance': 'Draw the importance weights that SN has learned.',
    'convert-checkpoint': "Convert the authors' ResNets with SN.",
    'publish-model': 'Write a slim checkpoint.',
    'export-onnx': 'Write a trained model as ONNX.',
}


@report_input_errors
def main() -> None:
    """Runs the command that the first argument names, or lists the commands.

    Raises:
        InputError: There is no such command, or MMEngine is not installed.
    """
    name, *arguments = sys.argv[1:] or ['']
    if name in ('-h', '--help'):
        print('usage: sn-mm COMMAND ...   (sn-mm COMMAND --help lists its options)\n\ncommands:')
        for command, line in COMMANDS.items():
            print(f'  {command:20}{line}')
        return
    if name not in COMMANDS:
        raise InputError(f'COMMAND must be one of {", ".join(COMMANDS)}, got {name!r}')
    if find_spec('mmengine') is None:
        raise InputError('the commands need MMEngine, which is not installed: pip install mmengine')
    sys.argv = [f'sn-mm {name}', *arguments]
    import_module(f'.{name.replace("-", "_")}', __package__).main()
