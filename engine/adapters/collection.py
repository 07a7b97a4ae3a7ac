"""The adapters that a model has at hand, by name: `llm.adapters`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from engine.adapters.lora import Adapter, Key, LoraConfig, LoraPair, module_name, new_adapter
from engine.adapters.peft_io import load_adapter, save_adapter
from engine.checkpoint import Checkpoint, required_shapes, save_hf
from engine.config import ModelConfig
from engine.errors import AdapterError


class Adapters:
    """Adapters of one model, each under a name of its own.

    Iterating gives the names in the order in which they came. `current` is the adapter of requests
    that name none (None: the bare model); see `use`.

    Args:
        checkpoint: the base model's files, for `merge` and for the name in saved adapters.
        device: where the adapters' tensors live.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._adapters: dict[str, Adapter] = {}
        self.current: Adapter | None = None

    @property
    def _model(self) -> ModelConfig:
        return self._checkpoint.config

    def __iter__(self) -> Iterator[str]:
        return iter(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def __getitem__(self, name: str) -> Adapter:
        """Raises AdapterError, with the names there are, if there is none of this name."""
        if name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise AdapterError(f"there is no adapter {name!r}; known adapters: {known}")
        return self._adapters[name]

    def resolve(self, adapter: str | Adapter | None) -> Adapter | None:
        """The adapter meant by a request's argument: None stands for the current one."""
        if adapter is None:
            return self.current
        if isinstance(adapter, str):
            return self[adapter]
        if adapter.model != self._model:
            raise AdapterError(f"adapter {adapter.name!r} was made for another model")
        return adapter

    def new(self, name: str, config: LoraConfig | None = None, *, seed: int = 0) -> Adapter:
        """A fresh adapter, which changes nothing until it is trained.

        Args:
            name: must be free.
            config: None for the defaults.
            seed: decides its random half.
        """
        self._require_free(name)
        return self._add(new_adapter(name, config or LoraConfig(), self._model, self._device, seed))

    def load(self, folder: str | Path, name: str | None = None) -> Adapter:
        """Reads an adapter in the PEFT layout; its name is the folder's unless given.

        Raises:
            AdapterError: see `engine.adapters.peft_io.load_adapter`.
        """
        name = name or Path(folder).expanduser().resolve().name
        self._require_free(name)
        return self._add(load_adapter(folder, name, self._model, self._device))

    def save(self, name: str, folder: str | Path) -> None:
        """Writes an adapter in the PEFT layout (fp32)."""
        save_adapter(self[name], folder, str(self._checkpoint.path))

    def copy(self, source: str, name: str) -> Adapter:
        """An independent adapter with the present values of another."""
        self._require_free(name)
        return self._add(self[source].copy(name))

    def drop(self, name: str) -> None:
        """Forgets an adapter; if it is in use, the bare model is current afterwards."""
        if self.current is self[name]:
            self.current = None
        del self._adapters[name]

    def stack(self, weights: Mapping[str, float], name: str) -> Adapter:
        """A new adapter whose update is the weighted sum of others' updates, exactly.

        The parts' ranks add up, projection by projection; they may differ in rank, scale and
        targets. `weights` gives each part's factor by its name.
        """
        self._require_free(name)
        parts = [(self[part], float(weight)) for part, weight in weights.items()]
        if not parts:
            raise AdapterError(f"stack: give at least one adapter to make {name!r} of")
        keys = dict.fromkeys(key for adapter, _ in parts for key in adapter.pairs)
        pairs = {key: _concatenate(key, parts) for key in keys}
        rank = max(pair.rank for pair in pairs.values())
        targets = tuple({target for _, target in pairs})
        config = LoraConfig(rank=rank, alpha=float(rank), targets=targets)
        return self._add(Adapter(name, config, self._model, pairs))

    def merge(self, name: str, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Writes the base model with an adapter's update added, as a HF folder with its tokenizer.

        The sum is made in fp32, one tensor at a time. `dtype` is what the folder stores; bfloat16
        and float16 halve it but lose updates smaller than their rounding (where dW is a thousandth
        of W, bfloat16 leaves most weights unchanged): prefer serving the adapter unmerged.
        """
        folder = Path(folder).expanduser()
        adapter = self[name]
        if folder.resolve() == self._checkpoint.path.resolve():
            raise AdapterError(f"{folder}: is the base model's own folder; choose another")
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise AdapterError(f"merge: dtype must be float32, bfloat16 or float16, not {dtype}")
        self._checkpoint.tokenizer().save(folder)
        save_hf(folder, self._model, self._merged(adapter), dtype=dtype)

    def use(self, adapter: str | Adapter | None) -> _Use:
        """Makes an adapter (None: the bare model) the one of requests that name none.

        It stays so, or until the end of the block: `with llm.adapters.use("mine"): ...`.
        """
        before = self.current
        self.current = None if adapter is None else self.resolve(adapter)
        return _Use(self, before)

    def _require_free(self, name: str) -> None:
        if not name:
            raise AdapterError("an adapter needs a name")
        if name in self._adapters:
            raise AdapterError(f"there is already an adapter {name!r}; drop it or choose a name")

    def _add(self, adapter: Adapter) -> Adapter:
        self._adapters[adapter.name] = adapter
        return adapter

    def _merged(self, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
        updates = {f"{module_name(*key)}.weight": pair for key, pair in adapter.pairs.items()}
        for name in required_shapes(self._model):
            tensor = self._checkpoint.read(name)
            pair = updates.get(name)
            if pair is not None:
                tensor = tensor.float().addmm_(pair.b.cpu(), pair.a.cpu(), alpha=pair.scale)
            yield name, tensor


class _Use:
    """What `Adapters.use` returns: as a context manager it restores the adapter before."""

    def __init__(self, adapters: Adapters, before: Adapter | None) -> None:
        self._adapters, self._before = adapters, before

    def __enter__(self) -> Adapter | None:
        return self._adapters.current

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._adapters.current = self._before


def _concatenate(key: Key, parts: list[tuple[Adapter, float]]) -> LoraPair:
    """`sum_i w_i s_i B_i A_i` as one pair of scale 1: the B side by side, the A on each other."""
    found = [(adapter.pairs[key], weight) for adapter, weight in parts if key in adapter.pairs]
    a = torch.cat([pair.a for pair, _ in found])
    b = torch.cat([pair.b * (weight * pair.scale) for pair, weight in found], dim=1)
    return LoraPair(a, b, 1.0)
