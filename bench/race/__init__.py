"""The side-by-side races: works, sides, worker processes, report."""
