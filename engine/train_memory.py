"""How many tokens a training pass may hold at once."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.model import Llama

# More tokens at a time gain no speed: matrix products are at full rate well before.
_MOST_TOKENS = {"cpu": 4096}
_MOST_TOKENS_ELSEWHERE = 32768
_SHARE = 0.5  # of free memory; the rest is for gradients' temporaries and other processes
_UNKNOWN_MEMORY = 4 << 30


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


def free_memory(device: torch.device) -> int:
    """Bytes that `device` has left: the accelerator's, or the process's own limit on the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return _UNKNOWN_MEMORY
    limits = [_available_in_system(), _available_in_group()]
    return min((limit for limit in limits if limit is not None), default=_UNKNOWN_MEMORY)


def _available_in_system() -> int | None:
    """Linux's own estimate of what can be allocated without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _available_in_group() -> int | None:
    """What a container's limit (cgroup v2) leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))
