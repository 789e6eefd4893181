"""What synchronising costs, by a model and measured."""
