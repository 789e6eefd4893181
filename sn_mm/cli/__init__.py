"""What the commands share: one room per concern."""
