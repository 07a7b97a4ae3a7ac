"""The operations. Each has one public function, a reference that specifies it, and backends."""

from kernels.attention import Segments, attention, attention_reference
from kernels.cross_entropy import (
    cross_entropy_chunk_reference,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from kernels.linear import linear, linear_reference
from kernels.lora import (
    LoraSlice,
    lora_add_,
    lora_add__reference,
    lora_linear,
    lora_linear_backward_reference,
    lora_linear_forward_reference,
    lora_linear_reference,
)
from kernels.lora_rows import LoraBank, LoraRows, lora_add_rows_, lora_add_rows__reference
from kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from kernels.paged_attention import (
    paged_attention,
    paged_attention_reference,
    store_kv,
    store_kv_reference,
)
from kernels.quantized import (
    QuantizedWeight,
    dequantize_reference,
    quantize,
    quantized_linear,
    quantized_linear_dx,
    quantized_linear_reference,
)
from kernels.rope import rope, rope_reference
from kernels.sampling import (
    Biases,
    IdLists,
    SampleParams,
    sample,
    sample_reference,
    top_logprobs,
    top_logprobs_reference,
)
from kernels.swiglu import swiglu, swiglu_reference

__all__ = [
    "Biases",
    "IdLists",
    "LoraBank",
    "LoraRows",
    "LoraSlice",
    "QuantizedWeight",
    "SampleParams",
    "Segments",
    "add_rms_norm",
    "add_rms_norm_reference",
    "attention",
    "attention_reference",
    "cross_entropy_chunk_reference",
    "dequantize_reference",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "linear_reference",
    "lora_add_",
    "lora_add__reference",
    "lora_add_rows_",
    "lora_add_rows__reference",
    "lora_linear",
    "lora_linear_backward_reference",
    "lora_linear_forward_reference",
    "lora_linear_reference",
    "paged_attention",
    "paged_attention_reference",
    "quantize",
    "quantized_linear",
    "quantized_linear_dx",
    "quantized_linear_reference",
    "rms_norm",
    "rms_norm_reference",
    "rope",
    "rope_reference",
    "sample",
    "sample_reference",
    "store_kv",
    "store_kv_reference",
    "swiglu",
    "swiglu_reference",
    "top_logprobs",
    "top_logprobs_reference",
]
