"""Random trials of synchronized layers among real processes; one process is the judge."""
