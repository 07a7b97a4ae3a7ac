"""What is raced: works on one model, made by code from a fixed list of words.

Every repetition of a work gets its own text, so nothing that a side keeps from one run (a prefix
cache, say) helps it in the next; both sides get the same token ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

Encode = Callable[[str], list[int]]
"""Text -> token ids, without a begin-of-sequence token."""

_TEXT = """
about above across after again against almost along already although always among animal another
answer anyone apple around arrive autumn because become before begin behind believe below beside
better between beyond bird black blue board boat book bread bridge bring brother build business
butter called candle careful castle center certain change children choose church circle city clear
climb close clothes cloud coffee cold color common complete consider copper corner cotton country
course cover create cross crowd current danger daughter decide degree describe desert different
dinner direct distance doctor during early earth east either electric engine enough evening every
example explain family famous farmer father field figure finger finish flower follow forest forward
friend garden general gentle glass gold government grass great green ground group happen harbor
heart heavy history horse hour house however hundred important inside interest iron island journey
kitchen language large later laugh learn letter library listen little machine market matter measure
meeting metal middle minute modern moment money month morning mother mountain music nation nature
never night north nothing notice number object ocean office often orange order other outside paint
paper parent people perhaps person picture piece place plain planet pocket position possible power
present probable problem produce promise question quick quiet railway rather reason record remember
report result river road round sailor school science season second sentence several shape shoulder
silver simple single sister smooth soldier something south special spring station stone story
straight strange stream street strong student sudden sugar summer supper surface system teacher
thousand through together tomorrow touch toward travel trouble under until valley village voice
wagon watch water weather west window winter without wonder wooden world writing yellow yesterday
"""
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Rival:
    """A peer and how much faster than it we want to be.

    Attributes:
        side: name of the side (see `bench.race.worker`).
        at_least: wanted ratio of the peer's time to ours.
        batches: batch sizes to choose the fastest from (prompts, or examples of a micro-batch);
            empty where the peer has no such choice.
    """

    side: str
    at_least: float
    batches: tuple[int, ...] = ()


@dataclass(frozen=True)
class GenerateWork:
    """`requests` prompts of `shared` common and `own` tokens; `samples` of `new_tokens` of each.

    `temperature` 0 is greedy.
    """

    name: str
    description: str
    rivals: tuple[Rival, ...]
    requests: int
    shared: int
    own: int
    new_tokens: int
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0

    def job(self, encode: Encode, seed: str) -> dict[str, Any]:
        """The inputs of one run."""
        rng = random.Random(f"{self.name} {seed}")
        prefix = _tokens(rng, encode, self.shared)
        return {
            "kind": "generate",
            "prompts": [prefix + _tokens(rng, encode, self.own) for _ in range(self.requests)],
            "samples": self.samples,
            "new_tokens": self.new_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "seed": rng.randrange(2**31),
        }


@dataclass(frozen=True)
class TrainSettings:
    """What both sides train: LoRA on all seven linears, no dropout, AdamW, a constant rate."""

    rank: int = 16
    alpha: int = 32
    learning_rate: float = 2e-4
    step_examples: int = 16
    clip: float = 1.0


@dataclass(frozen=True)
class TrainWork:
    """`examples` of `shortest` to `longest` tokens, the first `shared` of them common to all.

    Lengths are evenly spaced, in an order fixed by the seed; the last `completion` share of an
    example's tokens is what is learnt.
    """

    name: str
    description: str
    rivals: tuple[Rival, ...]
    examples: int
    shared: int
    shortest: int
    longest: int
    completion: float
    settings: TrainSettings = TrainSettings()

    def job(self, encode: Encode, seed: str) -> dict[str, Any]:
        """The inputs of one run: one epoch."""
        rng = random.Random(f"{self.name} {seed}")
        prefix = _tokens(rng, encode, self.shared)
        lengths = self._lengths()
        rng.shuffle(lengths)
        examples = []
        for length in lengths:
            ids = prefix + _tokens(rng, encode, length - self.shared)
            cut = length - max(1, round(length * self.completion))
            examples.append((ids[:cut], ids[cut:]))
        return {"kind": "train", "examples": examples, **asdict(self.settings)}

    def _lengths(self) -> list[int]:
        spread, last = self.longest - self.shortest, max(1, self.examples - 1)
        return [self.shortest + round(spread * i / last) for i in range(self.examples)]


Work = GenerateWork | TrainWork


def part(job: dict[str, Any], fraction: float, batch: int = 1) -> dict[str, Any]:
    """The job with about `fraction` of its requests or examples, in whole batches or steps."""
    unit = job["step_examples"] if job["kind"] == "train" else batch
    return first(job, max(1, round(size(job) * fraction / unit)) * unit)


def first(job: dict[str, Any], count: int) -> dict[str, Any]:
    """The job with its first `count` requests or examples."""
    key = "examples" if job["kind"] == "train" else "prompts"
    return {**job, key: job[key][:count]}


def size(job: dict[str, Any]) -> int:
    """Number of requests or examples."""
    return len(job["examples"] if job["kind"] == "train" else job["prompts"])


def tokens(job: dict[str, Any]) -> int:
    """What a run's speed is counted in: new tokens generated, or all tokens trained on."""
    if job["kind"] == "generate":
        return size(job) * int(job["samples"]) * int(job["new_tokens"])
    return sum(len(prompt) + len(completion) for prompt, completion in job["examples"])


def _tokens(rng: random.Random, encode: Encode, count: int) -> list[int]:
    """Exactly `count` ids of random words."""
    ids: list[int] = []
    while len(ids) < count:
        ids += encode("".join(f" {word}" for word in rng.choices(_WORDS, k=count)))
    return ids[:count]


_GENERATE_BATCHES = (8, 16, 32, 64)
_MICRO_BATCHES = (2, 4, 8, 16)

WORKS: tuple[Work, ...] = (
    GenerateWork(
        "annotate",
        "64 prompts of 40 tokens behind a shared prefix of 400, 10 samples each of 32 tokens",
        (Rival("transformers", 6.0, (1, 2, 4, 8)),),
        requests=64,
        shared=400,
        own=40,
        new_tokens=32,
        samples=10,
        temperature=0.2,
        top_k=10,
    ),
    GenerateWork(
        "generate",
        "64 unrelated prompts of 200 tokens, 128 new tokens each, greedy",
        (Rival("transformers", 1.5, _GENERATE_BATCHES),),
        requests=64,
        shared=0,
        own=200,
        new_tokens=128,
    ),
    GenerateWork(
        "single",
        "one request of 100 tokens, 256 new tokens, greedy",
        (Rival("transformers", 2.0), Rival("llama.cpp", 0.6)),
        requests=1,
        shared=0,
        own=100,
        new_tokens=256,
    ),
    TrainWork(
        "lora_shared",
        "LoRA r16 on all linears, 256 examples of 320 tokens sharing the first 250, 1 epoch",
        (Rival("transformers", 3.0, _MICRO_BATCHES),),
        examples=256,
        shared=250,
        shortest=320,
        longest=320,
        completion=20 / 320,
    ),
    TrainWork(
        "lora_unrelated",
        "LoRA r16 on all linears, 256 unrelated examples of 40 to 320 tokens, 1 epoch",
        (Rival("transformers", 1.5, _MICRO_BATCHES),),
        examples=256,
        shared=0,
        shortest=40,
        longest=320,
        completion=0.25,
    ),
)
