"""Draws images/scopes.svg: the three scopes of Switchable Normalization in a feature tensor."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sn_mm.output.figures import SCOPES as COLOURS
from sn_mm.output.figures import save_figure

IMAGES, CHANNELS, POSITIONS = 3, 4, 4
SCOPES = {
    'in': ('one channel,\none image', lambda n, c: n == 0 and c == 0),
    'ln': ('all channels,\none image', lambda n, c: n == 0),
    'bn': ('one channel,\nall images', lambda n, c: c == 0),
}


def draw() -> plt.Figure:
    """One panel a scope; a box is one position of one channel of one image."""
    figure = plt.figure(figsize=(6.6, 2.9))
    for i, (scope, (title, pooled)) in enumerate(SCOPES.items(), 1):
        axes = figure.add_subplot(1, 3, i, projection='3d', computed_zorder=True)
        filled = np.ones((IMAGES, CHANNELS, POSITIONS), dtype=bool)
        colours = np.full(filled.shape, '#f2f2f2', dtype=object)
        for n in range(IMAGES):
            for c in range(CHANNELS):
                if pooled(n, c):
                    colours[n, c] = COLOURS[scope]
        # The first image and the first channel face the reader.
        axes.voxels(filled, facecolors=colours, edgecolor='#555555', linewidth=0.5)
        axes.set_box_aspect(filled.shape, zoom=0.93)
        axes.view_init(elev=24, azim=-128)
        axes.set_axis_off()
        axes.text(IMAGES / 2, -0.4, -1.0, 'images N', 'x', ha='center', fontsize=11)
        axes.text(-0.5, CHANNELS / 2, -1.0, 'channels C', 'y', ha='center', fontsize=11)
        axes.text(-0.4, CHANNELS + 0.9, POSITIONS / 2, 'positions', 'z', va='center', fontsize=11)
        axes.set_title(f'{scope}: {title}', fontsize=13, y=0.97)
    figure.subplots_adjust(left=0, right=1, bottom=0.02, top=0.88, wspace=0)
    return figure


if __name__ == '__main__':
    save_figure(draw(), Path(__file__).with_name('scopes'))
