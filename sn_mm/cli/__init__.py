"""The commands of tools/, and the parts that they share."""
