"""The command ``sn-mm``: the names of its commands, their arguments, and their processes.

Nothing here imports torch, which takes seconds, so that help comes at once. What the commands do
stands in ``sn_mm/cli``.
"""

import sys
from pathlib import Path

PROGRAM = [sys.executable, str(Path(__file__).parent)]
"""Starts this very ``sn-mm`` in another process, also where the package is not installed."""
