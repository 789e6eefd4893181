"""The same training with one norm after the other: planned, run, and reported."""
