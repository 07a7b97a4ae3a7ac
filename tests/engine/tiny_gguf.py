"""Writes a transformers checkpoint as a GGUF file, the way llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from torch import Tensor

from engine.checkpoint import Checkpoint
from engine.config import ModelConfig
from engine.rope_scaling import Llama3Rope, YarnRope

_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output",
    "self_attn.": "attn_",
    "mlp.": "ffn_",
    "_proj": "",
}


def gguf_name(name: str) -> str:
    for ours, theirs in _PARTS.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(tensor: Tensor, heads: int) -> Tensor:
    """The row order of q and k in files of the llama architecture."""
    rows = tensor.view(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)


def write(source: Checkpoint, file: Path, kind: Kind = Kind.F32, **metadata: Any) -> Path:
    """Write ``source`` to ``file``, matrices as ``kind`` where their rows allow it.

    ``metadata`` replaces keys (dots written as double underscores); None leaves one out.
    """
    config = source.config
    architecture = "llama" if config.architecture == "mistral" else config.architecture
    writer = GGUFWriter(file, architecture)
    changes = {key.replace("__", "."): value for key, value in metadata.items()}
    for key, value in {**metadata_of(config, architecture), **changes}.items():
        add_value(writer, key, value)
    for name in source.shapes():
        tensor = source.read(name).float()
        if architecture == "llama" and "q_proj" in name:
            tensor = interleaved(tensor, config.num_heads)
        if architecture == "llama" and "k_proj" in name:
            tensor = interleaved(tensor, config.num_kv_heads)
        _add_tensor(writer, gguf_name(name), tensor, kind)
    if isinstance(config.rope_scaling, Llama3Rope):
        plain = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
        _add_tensor(writer, "rope_freqs.weight", plain / config.rope_frequencies(), Kind.F32)
    finish(writer)
    return file


def write_empty(file: Path, architecture: str) -> Path:
    """Write a GGUF file that holds nothing but the name of an architecture."""
    writer = GGUFWriter(file, architecture)
    finish(writer)
    return file


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def metadata_of(config: ModelConfig, architecture: str) -> dict[str, Any]:
    values = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_dim,
        "attention.sliding_window": config.layer_windows[0],
    }
    if isinstance(config.rope_scaling, YarnRope):
        values["rope.scaling.type"] = "yarn"
        values["rope.scaling.factor"] = config.rope_scaling.factor
        length = config.rope_scaling.original_max_positions
        values["rope.scaling.original_context_length"] = length
    keys = {f"{architecture}.{key}": value for key, value in values.items()}
    keys["tokenizer.ggml.bos_token_id"] = config.bos_token_id
    for name, token in zip(("eos", "eot"), config.eos_token_ids, strict=False):
        keys[f"tokenizer.ggml.{name}_token_id"] = token
    return keys


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)


def _add_tensor(writer: GGUFWriter, name: str, tensor: Tensor, kind: Kind) -> None:
    values = tensor.numpy()
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    if kind == Kind.F32 or values.ndim == 1 or values.shape[-1] % block:
        writer.add_tensor(name, values)
    elif kind == Kind.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
