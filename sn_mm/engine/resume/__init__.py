"""What makes a training that was killed and resumed end with the same weights."""
