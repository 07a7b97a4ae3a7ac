"""From the metadata of a GGUF file to a ModelConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.checkpoint.gguf_file import GgufHead
from engine.config import ModelConfig
from engine.errors import CheckpointError
from engine.rope_scaling import (
    FactorsRope,
    LinearRope,
    RopeScaling,
    YarnRope,
    yarn_attention_scale,
)

_ARCHITECTURES = ("llama", "qwen2", "qwen3")


def config_from_gguf(head: GgufHead, where: str) -> ModelConfig:
    """The ModelConfig of a GGUF file; ``where`` names it in errors.

    What the metadata leaves open follows from the tensors: biases, tied embeddings, the vocabulary,
    and the rotary factors of Llama 3. Raises CheckpointError for an unknown architecture, a feature
    the engine lacks, and keys that are missing or make no sense.
    """
    architecture = head.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise CheckpointError(
            f"{where}: general.architecture {architecture!r} is not supported; "
            f"use one of: {', '.join(_ARCHITECTURES)}"
        )
    keys = _Keys(head.metadata, architecture, where)
    heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
    layers = keys.integer("block_count")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    _refuse_unsupported(keys, head_dim)
    window_key = "attention.sliding_window"
    window = keys.integer(window_key) if keys.get(window_key) else None
    tensors = head.tensors
    try:
        return ModelConfig(
            architecture="mistral" if architecture == "llama" and window else architecture,
            vocab_size=_vocab_size(head, where),
            hidden_size=hidden,
            intermediate_size=keys.integer("feed_forward_length"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=keys.integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            rms_norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            rope_theta=keys.number("rope.freq_base", 10000.0),
            rope_scaling=_rope_scaling(head, keys),
            max_positions=keys.integer("context_length"),
            tie_word_embeddings="output.weight" not in tensors,
            attention_bias="blk.0.attn_q.bias" in tensors,
            output_bias="blk.0.attn_output.bias" in tensors,
            qk_norm=architecture == "qwen3",
            layer_windows=(window,) * layers,
            bos_token_id=keys.token("bos"),
            eos_token_ids=_end_tokens(keys),
        )
    except CheckpointError as error:
        raise error if str(error).startswith(where) else keys.error(str(error)) from None


class _Keys:
    """The metadata of one architecture, each key checked as it is taken."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, where: str) -> None:
        self.metadata, self.architecture, self.where = metadata, architecture, where

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or value < 1:
            raise self.error(
                f"{self.architecture}.{key} must be a positive whole number, not {value!r}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """The shortest decimal that is the stored float32: 1e-05, not 9.999999747378752e-06."""
        value = self.get(key)
        if value is None:
            value = default
        if not isinstance(value, int | float) or not value > 0:
            raise self.error(f"{self.architecture}.{key} must be a positive number, not {value!r}")
        return float(str(np.float32(value)))

    def token(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, int):
            raise self.error(f"{key} must be a token id, not {value!r}")
        return value

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {text}")


def _refuse_unsupported(keys: _Keys, head_dim: int) -> None:
    if keys.get("expert_count"):
        raise keys.error("mixtures of experts are not supported")
    for key in ("rope.dimension_count", "attention.value_length"):
        if keys.integer(key, head_dim) != head_dim:
            raise keys.error(f"{keys.architecture}.{key} must equal the head dimension {head_dim}")


def _vocab_size(head: GgufHead, where: str) -> int:
    embedding = head.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{where}: tensor token_embd.weight is missing")
    return embedding.shape[0]


def _rope_scaling(head: GgufHead, keys: _Keys) -> RopeScaling | None:
    kind = keys.get("rope.scaling.type") or "none"
    length = keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))
    divisors = head.tensors.get("rope_freqs.weight")
    if divisors is not None:
        if kind not in ("none", "linear") or divisors.encoding != "F32":
            raise keys.error(f"tensor rope_freqs.weight beside rope scaling {kind!r}")
        values = np.fromfile(divisors.file, np.float32, divisors.shape[0], offset=divisors.offset)
        if kind == "linear":
            values = values * np.float32(keys.number("rope.scaling.factor"))
        return FactorsRope(tuple(values.tolist()), length)
    if kind == "linear":
        return LinearRope(keys.number("rope.scaling.factor"))
    if kind == "yarn":
        factor = keys.number("rope.scaling.factor")
        scale = yarn_attention_scale(factor) * keys.number("rope.scaling.attn_factor", 1.0)
        return YarnRope(factor, length, scale)
    if kind != "none":
        raise keys.error(f"rope scaling {kind!r} is not supported")
    return None


def _end_tokens(keys: _Keys) -> tuple[int, ...]:
    """End of text, of turn and of message: a chat model stops at any of them."""
    ids = [keys.token(name) for name in ("eos", "eot", "eom")]
    return tuple(dict.fromkeys(token for token in ids if token is not None))
