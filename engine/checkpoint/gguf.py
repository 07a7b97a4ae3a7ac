"""Models as llama.cpp stores them: one .gguf file with config, vocabulary and weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from engine.checkpoint.base import Checkpoint, StoredTensor
from engine.checkpoint.gguf_config import config_from_gguf
from engine.checkpoint.gguf_file import read_head
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


class GgufCheckpoint(Checkpoint):
    """A .gguf file; quantised tensors are decoded to float32 as they are read.

    Raises CheckpointError, when made, for a damaged or truncated file, an architecture other than
    llama (which Mistral is too), qwen2 and qwen3, or a file that is one part of several.
    """

    def __init__(self, file: Path) -> None:
        head = read_head(file)
        parts = head.metadata.get("split.count", 1)
        if parts not in (0, 1):
            raise CheckpointError(
                f"{file}: split.count is {parts!r}, this is one part of a model; "
                "join the parts (llama-gguf-split --merge)"
            )
        self.metadata = head.metadata
        config = config_from_gguf(head, str(file))
        stored = {
            _hf_name(name): tensor
            for name, tensor in head.tensors.items()
            if name != "rope_freqs.weight"  # the config has it
        }
        super().__init__(file, file, config, stored)

    def tokenizer(self) -> Tokenizer:
        from engine.text.tokenizer import Tokenizer

        return Tokenizer.from_gguf(self.metadata, where=str(self.path))

    def _decode(self, stored: StoredTensor, raw: np.ndarray) -> Tensor:
        if stored.encoding in ("F32", "F16", "BF16"):
            assert stored.dtype is not None
            return torch.from_numpy(raw).view(stored.dtype)
        return torch.from_numpy(dequantize(raw, GGMLQuantizationType[stored.encoding]))

    def _row_order(self, name: str) -> Tensor | None:
        """llama.cpp rotates neighbouring rows of a head, transformers row i with row i + D/2.

        Files of the llama architecture therefore hold q and k with each head's halves interleaved:
        stored row 2i + s is row i + s D/2 of the head.
        """
        if self.metadata["general.architecture"] != "llama":
            return None
        if not name.endswith(("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")):
            return None
        rows, head_dim = self.stored[name].shape[0], self.config.head_dim
        return torch.arange(rows).view(-1, 2, head_dim // 2).transpose(1, 2).flatten()


def _hf_name(name: str) -> str:
    """The transformers name of a GGUF tensor; the GGUF name itself if there is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    layer, part, kind = match.groups()
    if layer is None:
        return f"{_TOP[part]}.{kind}" if part in _TOP else name
    return f"model.layers.{layer}.{_IN_LAYER[part]}.{kind}" if part in _IN_LAYER else name
