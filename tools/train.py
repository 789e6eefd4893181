"""Trains a model of MMDetection, MMSegmentation or another MMEngine toolbox; SN is registered.

Examples:
    python tools/train.py configs/demo/NAME.py
    python tools/train.py mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py --work-dir DIR --resume
    python tools/train.py mmdet::atss/atss_r50_fpn_1x_coco.py --norm SN --norm-extent all
"""

from sn_mm.cli.train import main

if __name__ == '__main__':
    main()
