"""Draws images/scopes.svg: the three scopes of Switchable Normalization in a feature tensor."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

IMAGES, CHANNELS, POSITIONS = 3, 4, 4
SCOPES = {
    'in: one channel of one image': ('#4c72b0', lambda n, c: n == 0 and c == 0),
    'ln: all channels of one image': ('#dd8452', lambda n, c: n == 0),
    'bn: one channel of all images': ('#55a868', lambda n, c: c == 0),
}


def draw() -> plt.Figure:
    """One panel a scope; a box is one position of one channel of one image."""
    figure = plt.figure(figsize=(9, 3.4))
    for i, (title, (colour, pooled)) in enumerate(SCOPES.items(), 1):
        axes = figure.add_subplot(1, 3, i, projection='3d', computed_zorder=True)
        filled = np.ones((IMAGES, CHANNELS, POSITIONS), dtype=bool)
        colours = np.full(filled.shape, '#f2f2f2', dtype=object)
        for n in range(IMAGES):
            for c in range(CHANNELS):
                if pooled(n, c):
                    colours[n, c] = colour
        # The first image and the first channel face the reader.
        axes.voxels(filled, facecolors=colours, edgecolor='#555555', linewidth=0.5)
        axes.set_box_aspect(filled.shape, zoom=0.93)
        axes.view_init(elev=24, azim=-128)
        axes.set_axis_off()
        axes.text(IMAGES / 2, -0.4, -1.0, 'images N', 'x', ha='center', fontsize=9)
        axes.text(-0.5, CHANNELS / 2, -1.0, 'channels C', 'y', ha='center', fontsize=9)
        axes.text(-0.4, CHANNELS + 0.4, POSITIONS / 2, 'positions', 'z', va='center', fontsize=9)
        axes.set_title(title, fontsize=11)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.9, wspace=0)
    return figure


if __name__ == '__main__':
    plt.rcParams['svg.hashsalt'] = 'scopes'
    figure = draw()
    for suffix in ('svg', 'png'):
        figure.savefig(Path(__file__).with_name(f'scopes.{suffix}'), dpi=110, metadata=None)
