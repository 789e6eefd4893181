"""``python PATH/sn_mm_cli``: as ``sn-mm``, from the folder that holds this package."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from sn_mm_cli.main import main  # noqa: E402

main()
