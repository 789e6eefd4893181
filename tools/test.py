"""Tests a checkpoint of MMDetection, MMSegmentation or another MMEngine toolbox; SN is registered.

    python tools/test.py configs/demo/NAME.py work_dirs/NAME/epoch_1.pth --show-dir pictures
    python tools/test.py mmseg::deeplabv3plus/NAME.py CHECKPOINT --out predictions --tta

prints the figures and writes them to metrics.json in the work dir.
"""

from sn_mm.cli.test import main

if __name__ == '__main__':
    main()
