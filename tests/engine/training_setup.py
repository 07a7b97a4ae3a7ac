"""What the training tests share: a tiny model with a tokenizer, and random examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.adapters.lora import Adapter, LoraConfig, LoraPair, new_adapter
from engine.checkpoint import Checkpoint, open_checkpoint
from engine.model import Llama, load_model
from engine.text.tokenizer import Tokenizer
from engine.training.config import TrainExample
from engine.training.packing import Encoded
from tests.engine import tiny_models, tiny_tokenizers

CPU = torch.device("cpu")
VOCABULARY = 300


@dataclass
class Setup:
    """A tiny model on disk and in memory, in fp32."""

    folder: Path
    checkpoint: Checkpoint
    model: Llama
    tokenizer: Tokenizer

    def adapter(self, *, seed: int = 0, trained: bool = False, **config: object) -> Adapter:
        """An adapter of rank 4; `trained` gives its b random values too."""
        settings = LoraConfig(**{"rank": 4, "alpha": 8.0, **config})  # type: ignore[arg-type]
        adapter = new_adapter("tiny", settings, self.model.config, CPU, seed)
        if trained:
            generator = torch.Generator().manual_seed(seed)
            for pair in adapter.pairs.values():
                pair.b.copy_(0.2 * torch.randn(pair.b.shape, generator=generator))
        return adapter


def tiny_setup(folder: Path, family: str = "smollm2", dtype: torch.dtype = torch.float32) -> Setup:
    tiny_tokenizers.byte_level_folder(folder, "smollm", vocab_size=VOCABULARY)
    tiny_models.make(family, folder, vocab_size=VOCABULARY)
    checkpoint = open_checkpoint(folder)
    return Setup(folder, checkpoint, load_model(checkpoint, dtype, CPU), checkpoint.tokenizer())


def random_ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (count,), generator=generator).tolist()


def examples_with_prefixes(count: int = 9, shared: int = 21) -> list[TrainExample]:
    """Two families of examples that share a prefix, and some that share none; uneven weights."""
    found = []
    for i in range(count):
        head = random_ids(shared + i % 3, seed=i % 3) if i % 3 < 2 else random_ids(9, seed=50 + i)
        prompt = head + random_ids(1 + i % 4, seed=100 + i)
        completion = random_ids(2 + i % 5, seed=200 + i)
        found.append(TrainExample(prompt, completion, weight=0.5 + i % 3))
    return found


def encode(examples: list[TrainExample]) -> list[Encoded]:
    return [
        Encoded((*e.prompt, *e.completion), len(e.prompt), e.weight, i)  # type: ignore[misc]
        for i, e in enumerate(examples)
    ]


def trained_values(pairs: dict[tuple[int, str], LoraPair]) -> torch.Tensor:
    """All of an adapter's values in one vector."""
    parts = [t.detach().flatten() for pair in pairs.values() for t in (pair.a, pair.b)]
    return torch.cat(parts)
