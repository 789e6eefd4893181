"""Makes a small instance-segmentation set of real data: nuclei under a fluorescence microscope.

    pip install --no-deps stardist
    python tools/make_nuclei.py data/study/nuclei

writes `data/study/nuclei/coco` in COCO's layout from the one picture of 512 x 512 pixels that the
package stardist ships, with 183 nuclei labelled by hand (Caicedo et al., Nature Methods 16, 2019).
Training images are windows at random places of its left part, turned and mirrored; the validation
images are the tiles of its right part, so that no pixel is in both.
"""

import sys

from sn_mm.cli.make_nuclei import main

if __name__ == '__main__':
    sys.exit(main())
