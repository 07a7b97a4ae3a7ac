"""Calls whose Triton kernels are compiled ahead of time, a module an op: see `test_compile.py`."""
