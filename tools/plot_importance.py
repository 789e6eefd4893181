"""Draws the learned importance weights: of each layer, and averaged over each component.

    python tools/plot_importance.py work_dirs/NAME/epoch_12.pth --out figures
    python tools/plot_importance.py 8x2/epoch_12.pth 8x1/epoch_12.pth --labels '8 x 2' '8 x 1'
    python tools/plot_importance.py --logs work_dirs/NAME

writes `layers` and `components` for checkpoints, several of them side by side, and `course` for the
training that `SwitchWeightsHook` logged, each as .png and .svg.
"""

from sn_mm.cli.plot_importance import main

if __name__ == '__main__':
    main()
