"""The look of all figures, and their files.

The colours are Okabe and Ito's, which people with any kind of colour vision tell apart.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from ..atomic import atomic_path

ORANGE, SKY, GREEN = '#E69F00', '#56B4E9', '#009E73'
BLUE, RED, PURPLE, BLACK = '#0072B2', '#D55E00', '#CC79A7', '#000000'
LINES = (RED, BLUE, GREEN, PURPLE, SKY, ORANGE, BLACK)
"""Of things side by side, in this order."""
SCOPES = {'in': ORANGE, 'ln': SKY, 'bn': BLUE}


def save_figure(figure: Figure, stem: Path) -> None:
    """Writes STEM.png and STEM.svg, the same bytes for the same figure."""
    for suffix, metadata in (('.png', {}), ('.svg', {'Date': None})):
        path = stem.with_name(f'{stem.name}{suffix}')
        with atomic_path(path) as file, rc_context({'svg.hashsalt': stem.name}):
            figure.savefig(file, dpi=150, metadata=metadata)
