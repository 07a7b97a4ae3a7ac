"""The Triton kernels under their ops' names."""

from kernels.triton.norm import (
    add_rms_norm,
    add_rms_norm_backward,
    rms_norm,
    rms_norm_backward,
)

__all__ = [
    "add_rms_norm",
    "add_rms_norm_backward",
    "rms_norm",
    "rms_norm_backward",
]
