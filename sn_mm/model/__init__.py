"""What is done to whole models: norms converted, simplified, measured."""
