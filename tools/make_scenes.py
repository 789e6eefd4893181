"""Makes small instance- and semantic-segmentation sets from real pixels, in the real layouts.

    python tools/make_scenes.py data --train 600 --val 100

writes `data/coco`, `data/cityscapes` and `data/ade`, where the ready-made dataset configs look for
them. Each scene shows handwritten digits over kinds of ground; all layouts hold the same scenes.
Instances are the digits, in ten classes; semantics are the kinds of ground, and all digits as one
class (`sn_mm/scenes/layouts.py` lists them). A set appears under its name only when it is whole.
"""

import sys

from sn_mm.cli.make_scenes import main

if __name__ == '__main__':
    sys.exit(main())
