"""llama.cpp through llama-cpp-python: one request at a time, greedy."""

from __future__ import annotations

from itertools import islice
from typing import Any

import llama_cpp


class LlamaCpp:
    """A GGUF model in the type it is stored in."""

    def __init__(self, model: str, threads: int) -> None:
        self.versions = {"llama-cpp-python": llama_cpp.__version__}
        self.llm = llama_cpp.Llama(
            model, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def generate(self, job: dict[str, Any], batch: int | None) -> list[list[int]]:
        """Greedy only, prompts one after the other; `generate` here is llama-cpp-python's own."""
        return [
            list(islice(self.llm.generate(prompt, temp=0.0), job["new_tokens"]))
            for prompt in job["prompts"]
        ]

    def new_adapter(self, job: dict[str, Any]) -> None:
        """Does not train."""
        raise NotImplementedError("llama.cpp does not train")

    def train(self, job: dict[str, Any], batch: int | None) -> list[float]:
        """Does not train."""
        raise NotImplementedError("llama.cpp does not train")
