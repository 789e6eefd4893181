"""Draws what tools/compare_norms.py measured, several comparisons side by side.

    python tools/plot_norms.py detection segmentation --labels 'Mask R-CNN' DeepLabV3+ --out norms

writes norms.png and norms.svg.
"""

from sn_mm.cli.plot_norms import main

if __name__ == '__main__':
    main()
