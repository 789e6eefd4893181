"""What synchronizing costs, by a model and measured."""
