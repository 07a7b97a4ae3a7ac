"""A tiny random model, a classification task and a free-text task for the method's tests."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

import engine
from engine import LLM
from selfguide.errors import Interrupted
from selfguide.method.answering import Answerer
from selfguide.method.pairs import Pair
from selfguide.observer import Silent
from selfguide.prompts import Prompts
from selfguide.settings import Settings
from selfguide.tasks import EvalRow, Example, Task
from tests.engine import tiny_models, tiny_tokenizers

VOCAB = 320

_COLOURS = ("red", "blue", "green", "grey", "pink", "black", "white", "brown")


def sentence(number: int) -> str:
    return f"the {_COLOURS[number % 8]} one is number {number}"


CLASSES = Task(
    name="parity",
    instruction="Is the number even or odd?",
    examples=tuple(Example(sentence(n), "odd" if n % 2 else "even") for n in (3, 8, 5)),
    labels={"even": "even", "odd": "odd"},
    metric="exact_match",
    eval_rows=tuple(EvalRow(sentence(n), ("odd" if n % 3 else "even",)) for n in range(100, 112)),
    source="parity.yaml",
)
FREE = Task(
    name="shout",
    instruction="Write it in capitals.",
    examples=tuple(Example(sentence(n), sentence(n).upper()) for n in (1, 2)),
    metric="rouge_l",
    eval_rows=tuple(EvalRow(sentence(n), (sentence(n).upper(),)) for n in range(200, 206)),
    source="shout.yaml",
)

QUICK = Settings(epochs=2, batch_size=2, rank=4, lr=3e-3)


@lru_cache
def folder() -> Path:
    path = Path(mkdtemp())
    tiny_models.make("smollm2", path, vocab_size=VOCAB, max_position_embeddings=1024)
    return tiny_tokenizers.byte_level_folder(path, vocab_size=VOCAB)


def llm() -> LLM:
    return engine.load(folder(), dtype=torch.float32, device="cpu", cache_bytes=32 << 20)


def answerer(task: Task, model: LLM | None = None) -> Answerer:
    model = model or llm()
    return Answerer(model, task, Prompts(task, model.tokenizer))


def pairs(task: Task, count: int = 8, start: int = 20) -> list[Pair]:
    """The task's examples and `count` synthetic pairs."""
    own = [Pair(e.input, e.output, "example") for e in task.examples]
    return [*own, *synthetic(task, count, start)]


def synthetic(task: Task, count: int, start: int) -> list[Pair]:
    def output(n: int) -> str:
        return ("odd" if n % 2 else "even") if task.labels else sentence(n).upper()

    return [Pair(sentence(n), output(n), "synthetic", n) for n in range(start, start + count)]


def unlabelled(count: int = 6) -> list[tuple[str, str | None]]:
    return [(sentence(n), "odd" if n % 2 else "even") for n in range(40, 40 + count)]


def values(model: LLM, name: str = "expert") -> torch.Tensor:
    """All of an adapter's values in one vector."""
    tensors = model.adapters[name].pairs.values()
    return torch.cat([t.detach().flatten() for pair in tensors for t in (pair.a, pair.b)])


class Stopping(Silent):
    """Stops at the pause point of that number, counted from 1; notes what was watched."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at, self.pauses = at, 0
        self.watched: list[str] = []

    def watch(self, title: str) -> Any:
        self.watched.append(title)
        return super().watch(title)

    def pause_point(self) -> None:
        self.pauses += 1
        if self.pauses == self.at:
            raise Interrupted
