"""Tiny random models of every supported family, written as HF folders by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_Classes = tuple[type[PretrainedConfig], type[PreTrainedModel]]
_LLAMA: _Classes = (LlamaConfig, LlamaForCausalLM)
_MISTRAL: _Classes = (MistralConfig, MistralForCausalLM)
_QWEN2: _Classes = (Qwen2Config, Qwen2ForCausalLM)
_QWEN3: _Classes = (Qwen3Config, Qwen3ForCausalLM)

_COMMON: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

# The factors are those of Llama 3.1, the original length is scaled down so that all three bands
# (kept, blended, divided) of the frequencies occur at head_dim 16.
_LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}

_FAMILIES: dict[str, tuple[_Classes, dict[str, Any]]] = {
    "llama2": (_LLAMA, {"num_key_value_heads": 4}),
    "llama3": (
        _LLAMA,
        {"rope_parameters": _LLAMA3_ROPE, "max_position_embeddings": 1024, "eos_token_id": [2, 3]},
    ),
    "vicuna": (_LLAMA, {"num_key_value_heads": 4, "intermediate_size": 176}),
    "tinyllama": (_LLAMA, {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "smollm2": (
        _LLAMA,
        {
            "hidden_size": 48,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "tie_word_embeddings": True,
        },
    ),
    "mistral": (_MISTRAL, {"sliding_window": 12}),
    "qwen2": (
        _QWEN2,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": (
        _QWEN3,
        {
            "head_dim": 32,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "rms_norm_eps": 1e-6,
        },
    ),
}

FAMILIES: tuple[str, ...] = tuple(_FAMILIES)


def make(
    family: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> Path:
    """Write a random model of ``family`` (one of ``FAMILIES``) into ``folder`` and return it.

    ``overrides`` replace fields of the transformers config. Norm weights lie around 1 and biases
    around 0 but never on them, and matrices are large enough for attention to be far from uniform.
    """
    (config_class, model_class), family_fields = _FAMILIES[family]
    config = config_class(**{**_COMMON, **family_fields, **overrides})
    model = model_class(config)
    _randomise(model, seed)
    model.generation_config.do_sample = False
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def _randomise(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter anew, in the order of their names, so that ``seed`` decides them all."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.5 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(0.25 * noise)
            else:
                parameter.copy_(noise * 1.5 / parameter.shape[1] ** 0.5)
