"""Parts of `check_zoo.py`: the toolboxes' ready-made configs, one by one, with SN."""
