"""SN in MMEngine: hooks, statistics of a training set, checkpoints with ``weights_only``."""
