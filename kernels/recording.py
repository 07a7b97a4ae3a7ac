"""Records a computation's kernel calls once and makes them again without the Python between them.

Decoding one token makes about 300 kernel calls of a few microseconds each, and as many trips
through argument checks and allocation; a replay makes the calls alone, on the same memory. Inputs
that change are tensors that the caller overwrites before each replay. On a GPU a recording is a
CUDA graph; on the CPU it is a list of calls of the C++ kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, Generic, Protocol, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.dispatch import has_backend
from kernels.quantized import QuantizedWeight, Weight

T = TypeVar("T")
_ALLOCATIONS = {torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default}
_current: ContextVar[_Calls[Any] | None] = ContextVar("recording", default=None)


class Recording(Protocol[T]):
    """A computation that can be repeated.

    Attributes:
        result: what the computation returned, computed; each replay overwrites its tensors.
    """

    result: T

    def replay(self) -> None:
        """Makes the calls again: every tensor of the recorded computation is computed anew."""
        ...


def can_record(x: Tensor, weight: Weight) -> bool:
    """Whether computations on tensors like `x` can be recorded: they run on our own kernels.

    Args:
        x: for its device and dtype.
        weight: of a linear layer in the computation.
    """
    quantized = isinstance(weight, QuantizedWeight)
    return has_backend("quantized_linear" if quantized else "linear", x)


def record(compute: Callable[[], T], x: Tensor) -> Recording[T]:
    """Runs `compute` on tensors like `x` and records it.

    On the CPU only kernels, allocations and views may occur in it; on a GPU nothing that waits for
    it or copies from the host, and it runs twice.

    Raises:
        RuntimeError: something else occurred, which a replay would silently leave out.
    """
    return _Graph(compute, x.device) if x.device.type == "cuda" else _Calls(compute)


class _Graph(Generic[T]):
    """A CUDA graph. All that live share one pool of memory, as no two are ever replayed at once."""

    _living: ClassVar[WeakSet[_Graph[Any]]] = WeakSet()

    def __init__(self, compute: Callable[[], T], device: torch.device) -> None:
        self._device, self._graph = device, torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            compute()  # compiles kernels and makes workspaces, which a capture must not do
            pool = next((graph._graph.pool() for graph in self._living), None)
            # Other threads may allocate meanwhile.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                self.result = compute()
        self._living.add(self)  # torch refuses the pool of graphs that are all gone
        self.replay()  # the capture computed nothing

    def replay(self) -> None:
        with torch.cuda.device(self._device):
            self._graph.replay()


class _Calls(Generic[T]):
    """Calls of the C++ kernels in order, and the tensors whose memory they use."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._calls: list[Callable[[], object]] = []
        self._kept: list[Tensor] = []
        with _Watch(self._kept):
            before = _current.set(self)
            try:
                self.result = compute()
            finally:
                _current.reset(before)

    def replay(self) -> None:
        for call in self._calls:
            call()


class _Watch(TorchDispatchMode):
    """Keeps what is allocated, lets views pass, and stops at anything a replay would miss."""

    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS:
            self._kept.append(result)
        elif not func.is_view or not _shares_memory(result, args[0]):
            raise RuntimeError(f"{func} is no kernel of this project and cannot be recorded")
        return result


def _shares_memory(result: Any, source: Any) -> bool:
    """Whether an op only looked at its first argument's memory in another way."""
    parts = result if isinstance(result, list | tuple) else [result]
    storage = source.untyped_storage().data_ptr() if isinstance(source, Tensor) else None
    return all(part.untyped_storage().data_ptr() == storage for part in parts)


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
