"""Tests a checkpoint, as `sn-mm test`; SN is registered.

Examples:
    python tools/test.py configs/demo/NAME.py work_dirs/NAME/epoch_1.pth --show-dir pictures
    python tools/test.py mmseg::deeplabv3plus/NAME.py CHECKPOINT --out predictions --tta
"""

import sys

from sn_mm_cli.main import main

if __name__ == '__main__':
    main(['test', *sys.argv[1:]])
