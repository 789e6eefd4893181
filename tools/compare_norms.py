"""Trains a model with one norm after the other, all else equal, and reports which one pays.

    python tools/compare_norms.py CONFIG --norms BN SyncBN "GN num_groups=32" SN "SN sync=False" \
        --processes 2 --images 1 2 4 --seeds 3 --out DIR
    python tools/compare_norms.py --quick

CONFIG is any config of mmdet or mmseg. Each cell is a run of tools/dist_train.sh in a folder of its
own; a cell that is done is not run again, so that a comparison that was stopped goes on with the
same command. DIR/README.md is the report.
"""

from sn_mm.cli.compare_norms import main

if __name__ == '__main__':
    main()
