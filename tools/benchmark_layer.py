"""Measures SN layers against PyTorch's norm layers, in time and in memory, side by side.

    python tools/benchmark_layer.py
    python tools/benchmark_layer.py --filter 'RoI|square' --format contiguous --out quick.json

goes through the inputs of ResNet-50-FPN, DeepLabV3+, RoI heads and some square ones, at the sizes
of the recipes on a GPU and with an eighth of the pixels on a CPU. On each, all layers take turns,
so that ratios hold even where the machine does not stay the same. Prints a table; writes the
figures with the machine, versions and date as JSON, and a picture of them as PNG and SVG.
"""

from sn_mm.cli.benchmark_layer import main

if __name__ == '__main__':
    main()
