"""How many tokens a training pass may hold at once."""

from __future__ import annotations

from engine.memory import free_memory
from engine.model import Llama

# More tokens at a time gain no speed: matrix products are at full rate well before.
_MOST_TOKENS = {"cpu": 4096}
_MOST_TOKENS_ELSEWHERE = 32768
_SHARE = 0.5  # of free memory; the rest is for gradients' temporaries and other processes


def plan_micro_batch(model: Llama, *, checkpointing: bool) -> int:
    """Tokens per micro-batch that half of the free memory holds, within what is useful."""
    most = _MOST_TOKENS.get(model.device.type, _MOST_TOKENS_ELSEWHERE)
    budget = _SHARE * free_memory(model.device)
    return max(256, min(most, int(budget / bytes_per_token(model, checkpointing=checkpointing))))


def bytes_per_token(model: Llama, *, checkpointing: bool) -> int:
    """Estimated activations that one token keeps until the backward pass.

    A block keeps its input and residual, the two norms' outputs, q, k, v before and after the
    rotation, attention's output, gate and up, and their product; with checkpointing only its two
    inputs, beside one whole block while that is recomputed.
    """
    c = model.config
    heads = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    block = 6 * c.hidden_size + 2 * heads + 2 * c.num_heads * c.head_dim + 4 * c.intermediate_size
    kept = 2 * c.hidden_size if checkpointing else block
    recomputed = 2 * block if checkpointing else 0
    return (kept * c.num_layers + recomputed) * model.embedding.element_size()
