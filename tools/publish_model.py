"""Writes a checkpoint to give away: weights and meta, with the start of its SHA-256 in the name.

    python tools/publish_model.py work_dirs/NAME/epoch_12.pth mask-rcnn_r50-sn_fpn.pth

writes mask-rcnn_r50-sn_fpn-1a2b3c4d.pth.
"""

from sn_mm.cli.publish_model import main

if __name__ == '__main__':
    main()
