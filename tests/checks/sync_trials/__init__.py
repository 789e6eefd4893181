"""Random trials of synchronised layers among real processes; one process is the judge."""
