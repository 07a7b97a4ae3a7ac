"""Other libraries' ops, where they are installed: Liger Kernel and PEFT."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.case import EPS, Eager, Place, Run, Shapes, backward, with_gradients
from bench.cases import angles


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def compiled(run: Eager) -> Eager:
    """By torch.compile, for the shapes at hand, its backward pass such that it can be repeated."""
    from torch._functorch import config

    config.donated_buffer = False
    return torch.compile(run, dynamic=False)


def _liger_rms_norm(at: Place, shapes: Shapes, *, back: bool = False) -> Run:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    x, weight = at.random(shapes.rows, shapes.width, grad=back), at.random(shapes.width)

    def run() -> Tensor:
        out: Tensor = LigerRMSNormFunction.apply(x, weight, EPS, 0.0, "llama", False)
        return out

    return backward(run(), [x]) if back else run


def _liger_add_rms_norm(at: Place, shapes: Shapes, *, back: bool = False) -> Run:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    x, residual = (at.random(shapes.rows, shapes.width, grad=back) for _ in range(2))
    weight = at.random(shapes.width)

    def run() -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor]
        out = LigerFusedAddRMSNormFunction.apply(x, residual, weight, EPS, 0.0, "llama", False)
        return out

    return backward(run(), [x, residual]) if back else run


def _liger_rope(at: Place, shapes: Shapes, *, back: bool = False) -> Run:
    from liger_kernel.ops.rope import LigerRopeFunction

    rows, head = shapes.rows, shapes.head
    q, k = (at.random(1, rows, n, head, grad=back) for n in (shapes.heads, shapes.kv_heads))
    cos, sin = (torch.cat([t, t], 1)[None].to(at.dtype) for t in angles(at, rows, head))

    def run() -> tuple[Tensor, Tensor]:
        out: tuple[Tensor, Tensor]
        out = LigerRopeFunction.apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin)
        return out

    return backward(run(), [q, k]) if back else run


def _liger_swiglu(at: Place, shapes: Shapes, *, back: bool = False) -> Run:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    gate, up = (at.random(shapes.rows, shapes.inner, grad=back) for _ in range(2))

    def run() -> Tensor:
        out: Tensor = LigerSiLUMulFunction.apply(gate, up)
        return out

    return backward(run(), [gate, up]) if back else run


LIGER: dict[str, Callable[[Place, Shapes], Run]] = {
    "rms_norm": _liger_rms_norm,
    "rms_norm backward": partial(_liger_rms_norm, back=True),
    "add_rms_norm": _liger_add_rms_norm,
    "add_rms_norm backward": partial(_liger_add_rms_norm, back=True),
    "rope in place": _liger_rope,
    "rope backward": partial(_liger_rope, back=True),
    "swiglu": _liger_swiglu,
    "swiglu backward": partial(_liger_swiglu, back=True),
}


def liger_cross_entropy(at: Place, shapes: Shapes) -> Run:
    """Loss and the gradient of the hidden states; every token is a target."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    hidden = at.random(shapes.rows, shapes.width, grad=True)
    head = at.random(shapes.vocabulary, shapes.width)
    targets = torch.randint(shapes.vocabulary, (shapes.rows,), device=at.device)
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return with_gradients(lambda: loss(head, hidden, targets), [hidden])


def peft_linear(at: Place, rows: int, columns: list[int], k: int, rank: int) -> Run:
    """PEFT's LoRA linears, one for each part of a fused one, forward and backward.

    fp32 updates under autocast, as transformers' Trainer runs them in mixed precision.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = nn.ModuleList(
        nn.Linear(k, n, bias=False, device=at.device, dtype=at.dtype) for n in columns
    )
    names = [str(i) for i in range(len(columns))]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    model = inject_adapter_in_model(config, layers)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    x = at.random(rows, k, grad=True)
    leaves = [x, *trained]
    grads = [at.random(rows, n) for n in columns]

    def run() -> None:
        with torch.autocast(at.device.type, at.dtype):
            outs = [layer(x) for layer in model]
        torch.autograd.grad(outs, leaves, grads)

    return run
