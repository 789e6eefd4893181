"""The learned mix, read from models and checkpoints and drawn."""
