"""What a side of the race must be able to do, and where each side's code is."""

from __future__ import annotations

from typing import Any, Protocol

OURS = "ours"


class Side(Protocol):
    """A library with the model loaded in bf16.

    Attributes:
        versions: the library's name and version, for the report.
    """

    versions: dict[str, str]

    def generate(self, job: dict[str, Any], batch: int | None) -> list[list[int]]:
        """New token ids of every sample, `job["samples"]` of each prompt in turn."""
        ...

    def new_adapter(self, job: dict[str, Any]) -> None:
        """Makes the fresh adapter that the next `train` trains; not timed."""
        ...

    def train(self, job: dict[str, Any], batch: int | None) -> list[float]:
        """One epoch over `job["examples"]`, in order; the mean target loss of every step."""
        ...


def load(name: str, model: str, threads: int) -> Side:
    """Loads the side called `name`; each imports its library only here, in its own process.

    Args:
        name: "ours", "transformers" or "llama.cpp".
        model: what `engine.load` takes, a transformers folder, or a .gguf file, in that order.
        threads: threads the side may use.

    Raises:
        ModuleNotFoundError: the side's library is not installed.
    """
    if name == "llama.cpp":
        from bench.race.llama_cpp_side import LlamaCpp

        return LlamaCpp(model, threads)
    import torch

    torch.set_num_threads(threads)
    if name == OURS:
        from bench.race.ours import Ours

        return Ours(model)
    from bench.race.transformers_side import Transformers

    return Transformers(model)
