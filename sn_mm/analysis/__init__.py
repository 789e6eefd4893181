"""The importance, read from models and checkpoints and drawn."""
