"""The operations. Each has one public function, a reference that specifies it, and backends."""

from kernels.linear import linear, linear_reference
from kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from kernels.paged_attention import (
    paged_attention,
    paged_attention_reference,
    store_kv,
    store_kv_reference,
)
from kernels.rope import rope, rope_reference
from kernels.swiglu import swiglu, swiglu_reference

__all__ = [
    "add_rms_norm",
    "add_rms_norm_reference",
    "linear",
    "linear_reference",
    "paged_attention",
    "paged_attention_reference",
    "rms_norm",
    "rms_norm_reference",
    "rope",
    "rope_reference",
    "store_kv",
    "store_kv_reference",
    "swiglu",
    "swiglu_reference",
]
