"""Checkpoints from elsewhere, and for elsewhere."""
