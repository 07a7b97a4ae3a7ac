"""Generation and scoring: the paged cache, the scheduler, and the requests they serve."""
