"""Replaces a checkpoint's moving average by the batch average, with which the paper evaluates SN.

python tools/batch_average.py configs/demo/NAME.py work_dirs/NAME/epoch_3.pth averaged.pth
torchrun --nproc_per_node 8 tools/batch_average.py CONFIG CHECKPOINT OUT --launcher pytorch
"""

from sn_mm.cli.batch_average import main

if __name__ == '__main__':
    main()
