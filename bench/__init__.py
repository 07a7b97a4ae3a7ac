"""Benchmarks: microbenchmarks of the operations and races against peers."""
