"""Records a computation's kernel calls once and makes them again without the Python between them.

What CUDA graphs are to a GPU. Decoding one token makes about 300 kernel calls of a few microseconds
each, and as many trips through argument checks and allocation; a replay makes the calls alone, on
the same memory. Inputs that change are tensors that the caller overwrites before each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.dispatch import has_backend

_ALLOCATIONS = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default}
_current: ContextVar[Recording | None] = ContextVar("recording", default=None)


class Recording:
    """Kernel calls in order, and the tensors whose memory they use."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], object]] = []
        self._kept: list[Tensor] = []

    def replay(self) -> None:
        """Makes the calls again: every tensor of the recorded computation is computed anew."""
        for call in self._calls:
            call()


class _Watch(TorchDispatchMode):
    """Keeps what is allocated, lets views pass, and stops at anything a replay would miss."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS:
            self._recording._kept.append(result)
        elif not func.is_view or not _shares_memory(result, args[0]):
            raise RuntimeError(f"{func} is no kernel of this project and cannot be recorded")
        return result


def _shares_memory(result: Any, source: Any) -> bool:
    """Whether an op only looked at its first argument's memory in another way."""
    parts = result if isinstance(result, list | tuple) else [result]
    storage = source.untyped_storage().data_ptr() if isinstance(source, Tensor) else None
    return all(part.untyped_storage().data_ptr() == storage for part in parts)


def can_record(x: Tensor) -> bool:
    """Whether computations on tensors like `x` can be recorded: they run on the C++ backend."""
    return x.device.type == "cpu" and has_backend("linear", x)


@contextmanager
def record() -> Iterator[Recording]:
    """Runs the block as usual and records it; only kernels, allocations and views may occur in it.

    Raises:
        RuntimeError: something else occurred, which a replay would silently leave out.
    """
    recording = Recording()
    with _Watch(recording):
        before = _current.set(recording)
        try:
            yield recording
        finally:
            _current.reset(before)


def recordable(native: ModuleType) -> Any:
    """The functions of a compiled module, each noting its calls while a recording is made."""

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            recording = _current.get()
            if recording is not None:
                recording._calls.append(partial(function, *args))
            return function(*args)

        return call

    functions = {name: getattr(native, name) for name in dir(native) if not name.startswith("_")}
    return SimpleNamespace(**{name: watched(function) for name, function in functions.items()})
