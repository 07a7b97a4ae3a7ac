"""Our side: the engine's public surface with its defaults."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import engine


class Ours:
    """A model loaded by `engine.load` in bf16."""

    def __init__(self, model: str) -> None:
        self.versions = {"selfguide": _version(), "torch": torch.__version__}
        self.llm = engine.load(model, dtype=torch.bfloat16, device="cpu")

    def generate(self, job: dict[str, Any], batch: int | None) -> list[list[int]]:
        """All requests in one call; the engine batches them itself."""
        params = engine.SamplingParams(
            temperature=job["temperature"],
            top_k=job["top_k"],
            max_tokens=job["new_tokens"],
            n=job["samples"],
            seed=job["seed"],
            ignore_eos=True,
        )
        return [list(completion.ids) for completion in self.llm.generate(job["prompts"], params)]

    def new_adapter(self, job: dict[str, Any]) -> None:
        """LoRA on all linears, the engine's default."""
        if "race" in self.llm.adapters:
            self.llm.adapters.drop("race")
        self.llm.adapters.new("race", engine.LoraConfig(rank=job["rank"], alpha=job["alpha"]))

    def train(self, job: dict[str, Any], batch: int | None) -> list[float]:
        """The engine plans its micro-batches itself."""
        config = engine.TrainConfig(
            epochs=1,
            batch_size=job["step_examples"],
            lr=job["learning_rate"],
            schedule="constant",
            warmup_ratio=0.0,
            max_grad_norm=job["clip"],
            append_eos=False,
            shuffle=False,
        )
        examples = [engine.TrainExample(*example) for example in job["examples"]]
        return list(self.llm.train(examples, config, adapter="race").losses)


def _version() -> str:
    try:
        return version("selfguide")
    except PackageNotFoundError:
        return "source tree"
