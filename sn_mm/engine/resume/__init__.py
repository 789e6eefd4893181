"""A training that is killed and goes on with --resume to the same weights."""
