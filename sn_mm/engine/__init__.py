"""SN in MMEngine: hooks, the optimizer constructor, exact resuming, safe loading."""
