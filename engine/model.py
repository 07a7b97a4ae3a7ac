"""A Llama-style decoder in one sitting: weights, and one forward pass for inference and training.

What differs between the two is handed in: `attend` knows where keys and values live (the paged
cache or the packed batch itself), `lora` knows which rows carry which adapter. q, k, v and gate, up
are stored as one fused matrix each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from engine.checkpoint import Checkpoint, validate
from engine.config import ModelConfig
from engine.rotary import rotary_table
from kernels import add_rms_norm, quantize, rms_norm, rope, swiglu
from kernels.quantized import Kind, QuantizedWeight, Weight

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`attend(layer, q [T, H, D], k [T, Hkv, D], v [T, Hkv, D]) -> [T, H, D]`."""


class Projections(Protocol):
    """Computes a layer's linears, with or without low-rank updates."""

    def apply(
        self, layer: int, linear: str, x: Tensor, weight: Weight, bias: Tensor | None
    ) -> Tensor:
        """`x [T, K]`, `weight [N, K]` -> `[T, N]`; `linear` is qkv, o, gate_up or down."""
        ...


@dataclass(slots=True)
class Layer:
    """One block's weights. H heads and Hkv key-value heads of D, width W, inner width I."""

    attn_norm: Tensor  # [W]
    qkv: Weight  # [(H + 2 Hkv) D, W]
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None  # [D]
    o: Weight  # [W, H D]
    o_bias: Tensor | None
    mlp_norm: Tensor  # [W]
    gate_up: Weight  # [2 I, W]
    down: Weight  # [W, I]


class Llama:
    """Llama 2/3, Vicuna, TinyLlama, SmolLM2, Mistral, Qwen2/2.5 and Qwen3, by their config.

    Attributes:
        config: sizes and constants.
        embedding: `[V, W]`; `head` is the same tensor where the model ties them.
        layers: the blocks' weights.
        norm: `[W]`, before the head.
        cos, sin: `[max_positions, D / 2]` fp32.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        layers: list[Layer],
        norm: Tensor,
        head: Tensor,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self.head = head
        self.cos, self.sin = rotary_table(config, embedding.device)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def quantized(self) -> Kind | None:
        """What the blocks' linears are rounded to, None if they are of `dtype`."""
        weight = self.layers[0].qkv
        return weight.kind if isinstance(weight, QuantizedWeight) else None

    @property
    def precision(self) -> str:
        """How numbers are held, in words: "bfloat16", or "bfloat16 with int4 weights"."""
        dtype = str(self.dtype).removeprefix("torch.")
        return dtype if self.quantized is None else f"{dtype} with {self.quantized} weights"

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, a tied head counted once."""
        tensors: list[Weight] = [self.embedding, self.norm]
        if self.head is not self.embedding:
            tensors.append(self.head)
        for layer in self.layers:
            fields = (getattr(layer, name) for name in Layer.__slots__)
            tensors += [tensor for tensor in fields if tensor is not None]
        return sum(tensor.nbytes for tensor in tensors)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        attend: Attend,
        lora: Projections,
        *,
        checkpoint: bool = False,
    ) -> Tensor:
        """Runs the blocks and the last norm over a flat batch of tokens.

        Args:
            tokens: `[T]` int64 ids.
            positions: `[T]` int32 or int64, each token's place in its own sequence.
            attend: attention over whatever holds the keys and values.
            lora: the linears.
            checkpoint: keep only each block's inputs for the backward pass and recompute the rest.

        Returns:
            `[T, W]`; multiply by `head` for logits.
        """
        residual = self.embed(tokens)
        return self.blocks(residual, positions, attend, lora, checkpoint=checkpoint)

    def embed(self, tokens: Tensor) -> Tensor:
        """`[T]` int64 -> `[T, W]`."""
        return F.embedding(tokens, self.embedding)

    def blocks(
        self,
        residual: Tensor,
        positions: Tensor,
        attend: Attend,
        lora: Projections,
        *,
        checkpoint: bool = False,
    ) -> Tensor:
        """`hidden`, from the tokens' embeddings `[T, W]` on."""
        normed = rms_norm(residual, self.layers[0].attn_norm, self.config.rms_norm_eps)
        for index in range(len(self.layers)):

            def block(
                normed: Tensor, residual: Tensor, index: int = index
            ) -> tuple[Tensor, Tensor]:
                return self._block(index, normed, residual, positions, attend, lora)

            if checkpoint:
                normed, residual = recompute(block, normed, residual, use_reentrant=False)
            else:
                normed, residual = block(normed, residual)
        return normed

    def _block(
        self,
        index: int,
        normed: Tensor,
        residual: Tensor,
        positions: Tensor,
        attend: Attend,
        lora: Projections,
    ) -> tuple[Tensor, Tensor]:
        """`normed` and `residual` `[T, W]` before this block -> the same two before the next."""
        layer, eps = self.layers[index], self.config.rms_norm_eps
        q, k, v = self._split(lora.apply(index, "qkv", normed, layer.qkv, layer.qkv_bias))
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, eps), rms_norm(k, layer.k_norm, eps)
        q, k = rope(q, k, self.cos, self.sin, positions, inplace=not torch.is_grad_enabled())
        mixed = attend(index, q, k, v).flatten(1)
        update = lora.apply(index, "o", mixed, layer.o, layer.o_bias)
        normed, residual = add_rms_norm(update, residual, layer.mlp_norm, eps)
        inner = swiglu(lora.apply(index, "gate_up", normed, layer.gate_up, None))
        update = lora.apply(index, "down", inner, layer.down, None)
        return add_rms_norm(update, residual, self._norm_after(index), eps)

    def _norm_after(self, index: int) -> Tensor:
        last = index + 1 == len(self.layers)
        return self.norm if last else self.layers[index + 1].attn_norm

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[T, (H + 2 Hkv) D]` -> views q `[T, H, D]`, k and v `[T, Hkv, D]`."""
        c = self.config
        heads = qkv.view(len(qkv), c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = heads.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
        return q, k, v


def load_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    quantized: Kind | None = None,
) -> Llama:
    """Reads a checkpoint tensor by tensor into fused weights of `dtype` on `device`.

    With `quantized` the blocks' linears are rounded to so many bits, each as it is read: at no time
    does more than one of them exist in `dtype`.

    Raises:
        CheckpointError: a tensor is missing, surplus, misshapen or damaged.
    """
    validate(checkpoint)
    config = checkpoint.config
    reader = _Reader(checkpoint, dtype, device, quantized)
    embedding = reader.one("model.embed_tokens.weight")
    layers = [_load_layer(reader, config, index) for index in range(config.num_layers)]
    norm = reader.one("model.norm.weight")
    head = embedding if config.tie_word_embeddings else reader.one("lm_head.weight")
    return Llama(config, embedding, layers, norm, head)


def _load_layer(reader: _Reader, config: ModelConfig, index: int) -> Layer:
    attn, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
    qkv = [f"{attn}{name}_proj" for name in "qkv"]
    return Layer(
        attn_norm=reader.one(f"model.layers.{index}.input_layernorm.weight"),
        qkv=reader.linear(*(f"{name}.weight" for name in qkv)),
        qkv_bias=reader.stacked([f"{name}.bias" for name in qkv])
        if config.attention_bias
        else None,
        q_norm=reader.one(f"{attn}q_norm.weight") if config.qk_norm else None,
        k_norm=reader.one(f"{attn}k_norm.weight") if config.qk_norm else None,
        o=reader.linear(f"{attn}o_proj.weight"),
        o_bias=reader.one(f"{attn}o_proj.bias") if config.output_bias else None,
        mlp_norm=reader.one(f"model.layers.{index}.post_attention_layernorm.weight"),
        gate_up=reader.linear(f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"),
        down=reader.linear(f"{mlp}down_proj.weight"),
    )


class _Reader:
    """Reads stored tensors straight into the model's own, piece by piece."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        quantized: Kind | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.shapes = checkpoint.shapes()
        self.dtype, self.device, self.quantized = dtype, device, quantized

    def one(self, name: str) -> Tensor:
        return self.stacked([name])

    def linear(self, *names: str) -> Weight:
        """A linear layer's weight, of one stored matrix or of several on top of each other."""
        weight = self.stacked(list(names))
        return weight if self.quantized is None else quantize(weight, self.quantized)

    def stacked(self, names: list[str]) -> Tensor:
        """The named tensors on top of each other (along their first dimension)."""
        rows = [self.shapes[name][0] for name in names]
        shape = (sum(rows), *self.shapes[names[0]][1:])
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        for name, part in zip(names, out.split(rows), strict=True):
            self.checkpoint.read_into(name, part)
        return out
