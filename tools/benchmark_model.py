"""Measures a training step of a model with its own norms and with SN, side by side.

    python tools/benchmark_model.py mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py --size 800
    python tools/benchmark_model.py CONFIG --size 256 --norm SN --norm-extent all

A step is forward, backward and the optimizer's, on two made-up images. Both models have every layer
in training mode and nothing frozen. They take turns, so that the ratio holds even where the machine
does not stay the same. Prints a table; writes the figures with the machine, versions and date.
"""

from sn_mm.cli.benchmark_model import main

if __name__ == '__main__':
    main()
