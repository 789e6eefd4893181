"""Trains a model, as `sn-mm train`; SN is registered.

Examples:
    python tools/train.py configs/demo/NAME.py
    python tools/train.py mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py --work-dir DIR --resume
    python tools/train.py mmdet::atss/atss_r50_fpn_1x_coco.py --norm SN --norm-extent all
"""

import sys

from sn_mm_cli.main import main

if __name__ == '__main__':
    main(['train', *sys.argv[1:]])
