"""The operations. Each has one public function, a reference that specifies it, and backends."""

from kernels.linear import linear, linear_reference

__all__ = ["linear", "linear_reference"]
