"""Converts a ResNet with SN that the paper's authors publish, for a ready-made ResNet to load.

    python tools/convert_checkpoint.py SRC DST --to mmdet

SRC comes from their classification, detection or segmentation repository. The lines printed at the
end are the config to use DST with: its norm_cfg makes the outputs equal theirs.
"""

from sn_mm.cli.convert_checkpoint import main

if __name__ == '__main__':
    main()
