"""What each command of ``sn-mm`` does, and the parts that commands share."""
