"""Which tensors a model must have, and whether a checkpoint has exactly those."""

from __future__ import annotations

import re

from engine.checkpoint.base import Checkpoint
from engine.config import ModelConfig
from engine.errors import CheckpointError

# Old exports carry these; they follow from the config.
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|masked_bias$|attn_rot_embd")


def required_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model, by its transformers name, in the order of use."""
    c = config
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c.vocab_size, c.hidden_size)
    }
    for layer in range(c.num_layers):
        for name, shape in _layer_shapes(c).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes["model.norm.weight"] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return shapes


def _layer_shapes(c: ModelConfig) -> dict[str, tuple[int, ...]]:
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (c.hidden_size,)}
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        shapes[f"self_attn.{name}_proj.weight"] = (rows, c.hidden_size)
        if c.attention_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
    if c.qk_norm:
        shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = (c.head_dim,)
    shapes["self_attn.o_proj.weight"] = (c.hidden_size, q)
    if c.output_bias:
        shapes["self_attn.o_proj.bias"] = (c.hidden_size,)
    shapes["post_attention_layernorm.weight"] = (c.hidden_size,)
    for name in ("gate", "up"):
        shapes[f"mlp.{name}_proj.weight"] = (c.intermediate_size, c.hidden_size)
    shapes["mlp.down_proj.weight"] = (c.hidden_size, c.intermediate_size)
    return shapes


def problems(checkpoint: Checkpoint) -> list[str]:
    """One line for each tensor that is missing, surplus, misshapen or of an unreadable type."""
    architecture, required = checkpoint.config.architecture, required_shapes(checkpoint.config)
    found = []
    for name, shape in required.items():
        stored = checkpoint.stored.get(name)
        if stored is None:
            found.append(f"{checkpoint.index}: tensor {name} is missing")
        elif stored.shape != shape:
            found.append(
                f"{stored.file}: tensor {name} has shape {list(stored.shape)}, "
                f"the model's config needs {list(shape)}"
            )
        elif stored.dtype is None:
            found.append(
                f"{stored.file}: tensor {name} is stored as {stored.encoding}, "
                "which cannot be decoded; use another export of the model"
            )
    for name, stored in checkpoint.stored.items():
        tied_head = name == "lm_head.weight" and checkpoint.config.tie_word_embeddings
        if name not in required and not tied_head and not _DERIVED.search(name):
            found.append(
                f"{stored.file}: tensor {name} has no place in this {architecture} model; "
                "the engine would not compute what it was trained for"
            )
    return found


def validate(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError, with one line, unless the tensors are exactly the model's."""
    found = problems(checkpoint)
    if found:
        more = f" (and {len(found) - 1} more such problems)" if len(found) > 1 else ""
        raise CheckpointError(found[0] + more)
