"""The Triton kernels under their ops' names."""

from kernels.triton.attention import attention
from kernels.triton.attention_backward import attention_backward
from kernels.triton.cross_entropy import cross_entropy_chunk
from kernels.triton.linear import linear
from kernels.triton.lora import lora_linear_forward
from kernels.triton.lora_add import lora_add_
from kernels.triton.lora_backward import lora_linear_backward
from kernels.triton.lora_rows import lora_add_rows_
from kernels.triton.norm import (
    add_rms_norm,
    add_rms_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from kernels.triton.paged_attention import paged_attention
from kernels.triton.paged_store import store_kv
from kernels.triton.quantized import dequantize, quantized_linear
from kernels.triton.rope import rope
from kernels.triton.sampling import sample, top_logprobs
from kernels.triton.swiglu import swiglu, swiglu_backward

__all__ = [
    "add_rms_norm",
    "add_rms_norm_backward",
    "attention",
    "attention_backward",
    "cross_entropy_chunk",
    "dequantize",
    "linear",
    "lora_add_",
    "lora_add_rows_",
    "lora_linear_backward",
    "lora_linear_forward",
    "paged_attention",
    "quantized_linear",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "sample",
    "store_kv",
    "swiglu",
    "swiglu_backward",
    "top_logprobs",
]
