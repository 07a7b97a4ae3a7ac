"""Compares an op with its reference in float64, on memory that holds NaN before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.case import Place
from bench.gpu_race.results import Check
from bench.gpu_race.workbench import Workbench
from tests.kernels.oracle import FORWARD, GRADIENT, double, gradients, relative_rms


@contextmanager
def poisoned() -> Iterator[None]:
    """Within the block memory that torch allocates without a value holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


@dataclass(frozen=True)
class Checker:
    """Compares ops on tensors of one dtype with their references on the same values in float64."""

    bench: Workbench
    dtype: torch.dtype

    @property
    def at(self) -> Place:
        return Place(self.bench.device, self.dtype)

    @property
    def rows(self) -> int:
        """A number that no tile divides."""
        return 37 if self.bench.tiny else 2053

    def compare(
        self,
        name: str,
        op: Callable[..., Tensor | Sequence[Tensor]],
        exact: Callable[..., Tensor | Sequence[Tensor]],
        leaves: list[Tensor],
    ) -> list[Check]:
        """The outputs' errors, and those of the gradients of the leaves that want one."""
        title = f"{name} {str(self.dtype).removeprefix('torch.')}"
        wide = double(*leaves)
        with poisoned():
            outs = _several(op(*(x.detach() for x in leaves)))
            wanted = _several(exact(*(x.detach() for x in wide)))
            errors = [relative_rms(*pair) for pair in zip(outs, wanted, strict=True)]
            checks = [Check(title, max(errors), FORWARD[self.dtype])]
            if any(x.requires_grad for x in leaves):
                upstream = [self.at.random(*out.shape) for out in outs]
                grads = gradients(op, leaves, upstream)
                wanted = gradients(exact, wide, upstream)
                errors = [relative_rms(*pair) for pair in zip(grads, wanted, strict=True)]
                checks.append(Check(f"{title} gradients", max(errors), GRADIENT[self.dtype]))
        return checks


def _several(out: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)
