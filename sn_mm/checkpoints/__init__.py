"""Checkpoints of the paper's authors converted, and own checkpoints prepared for publishing."""
