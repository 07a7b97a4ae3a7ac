"""Step 3: filters. Each is a function from a candidate to the reason why it has to go, or None.

A new filter is a function here and an entry in INPUT_FILTERS (before annotation) or OUTPUT_FILTERS.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean, stdev

from selfguide.method.overlap import Overlap
from selfguide.method.pairs import Candidate
from selfguide.method.shape import Shape
from selfguide.metrics.rouge import similarity
from selfguide.metrics.words import words
from selfguide.settings import Settings
from selfguide.tasks import Task

_TOO_ALIKE = 0.7  # ROUGE-L F from which two inputs count as the same (Self-Instruct's threshold)
_RETURNED = 0.9  # ROUGE-L F from which an answer counts as the invented output given back
_LEAST_SPREAD = 0.75  # least standard deviation of lengths, as a share of their mean
_LEAST_LENGTH = 1 / 3  # of the shortest example's length
_NOISE = re.compile(
    r"^(?:(?:sure|certainly|of course|here (?:is|are)|hello|hi there|i'm sorry|i am sorry|as an ai"
    r"|thank you|example \d|new input)\b|(?:note|input|output):|therefore,)"
    r"|\\_|\b(?:come up with|new input|as an ai)\b|<\||https?://|[{}]{2}|\ufffd",
    re.IGNORECASE,
)


@dataclass
class Context:
    """What filters compare with: the task, the settings, and the inputs that passed so far."""

    task: Task
    settings: Settings
    seen: dict[str, int | None] = field(default_factory=dict)
    by_word: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for example in self.task.examples:
            self.remember(example.input, None)

    def remember(self, input: str, id: int | None) -> None:
        """Later inputs that are like this one are duplicates of it; `id` None for an example."""
        self.seen[input] = id
        for word in set(words(input)):
            self.by_word[word].append(input)

    @cached_property
    def shape(self) -> Shape:
        return Shape.of([example.input for example in self.task.examples])

    @cached_property
    def output_shape(self) -> Shape:
        return Shape.of([example.output for example in self.task.examples])

    @cached_property
    def overlap(self) -> Overlap:
        return Overlap.of(self.task.examples)

    @cached_property
    def noisy_example(self) -> bool:
        """Whether the task itself talks like noise, so that noise words say nothing."""
        texts = [text for e in self.task.examples for text in (e.input, e.output)]
        return any(_NOISE.search(text) for text in texts)

    def band(self, of: str) -> tuple[float, float]:
        """Shortest and longest length, in characters, of an "input" or "output"."""
        lengths = [len(getattr(example, of)) for example in self.task.examples]
        spread = max(stdev(lengths), _LEAST_SPREAD * mean(lengths))
        reach = self.settings.length_sigmas * spread
        low = max(mean(lengths) - reach, _LEAST_LENGTH * min(lengths))
        return min(low, *lengths), max(mean(lengths) + reach, *lengths)


Filter = Callable[[Candidate, Context], str | None]


def empty(candidate: Candidate, context: Context) -> str | None:
    return None if candidate.input else "the input is empty"


def noise(candidate: Candidate, context: Context) -> str | None:
    if context.noisy_example:
        return None
    found = _NOISE.search(candidate.input)
    return f"says {found.group()!r}, which is not the task's text" if found else None


def shape(candidate: Candidate, context: Context) -> str | None:
    return context.shape.misfit(candidate.input)


def input_length(candidate: Candidate, context: Context) -> str | None:
    return _off_band("input", candidate.input, context)


def duplicate(candidate: Candidate, context: Context) -> str | None:
    own = set(words(candidate.input))
    near: dict[str, int] = defaultdict(int)
    for word in own:
        for text in context.by_word.get(word, ()):
            near[text] += 1
    for text, shared in near.items():
        enough = shared >= _TOO_ALIKE * len(own) / 2
        if enough and similarity(candidate.input, text) >= _TOO_ALIKE:
            id = context.seen[text]
            return "like an example" if id is None else f"like candidate {id}"
    return None


def output_shape(candidate: Candidate, context: Context) -> str | None:
    if context.task.is_classification:
        return None
    misfit = context.output_shape.misfit(candidate.output or "")
    return f"the output {misfit}" if misfit else None


def overlap(candidate: Candidate, context: Context) -> str | None:
    if context.task.is_classification:
        return None
    return context.overlap.misfit(candidate.input, candidate.output or "")


def output_length(candidate: Candidate, context: Context) -> str | None:
    if context.task.is_classification:
        return None
    return _off_band("output", candidate.output or "", context)


def copy(candidate: Candidate, context: Context) -> str | None:
    """An output that repeats its input, where no example does."""
    if context.task.is_classification or any(
        _folded(e.input) == _folded(e.output) for e in context.task.examples
    ):
        return None
    same = _folded(candidate.input) == _folded(candidate.output or "")
    return "the output repeats the input" if same else None


def agreement(candidate: Candidate, context: Context) -> str | None:
    if candidate.scores is not None or candidate.agreement is None:
        return None
    least = context.settings.min_agreement
    if candidate.agreement >= least:
        return None
    return f"the votes agree to {candidate.agreement:.0%} only, {least:.0%} are needed"


def round_trip(candidate: Candidate, context: Context) -> str | None:
    if candidate.source == "reverse" and not context.task.is_classification:
        back = candidate.agreement or 0.0
        found = f"asked the usual way round, the model's answer is {back:.0%} like this output"
        return None if back >= _RETURNED else found
    if candidate.asked is None or candidate.output == candidate.asked:
        return None
    return f"asked for {candidate.asked!r}, annotation says {candidate.output!r}"


INPUT_FILTERS: Mapping[str, Sequence[Filter]] = {
    "noise": (empty, noise),
    "shape": (shape,),
    "length": (input_length,),
    "duplicate": (duplicate,),
}
OUTPUT_FILTERS: Mapping[str, Sequence[Filter]] = {
    "shape": (output_shape,),
    "length": (output_length,),
    "copy": (copy,),
    "overlap": (overlap,),
    "agreement": (agreement,),
    "round_trip": (round_trip,),
}


def sift(
    candidates: Sequence[Candidate],
    filters: Mapping[str, Sequence[Filter]],
    context: Context,
) -> list[Candidate]:
    """Notes in each candidate the first of `filters` that takes it; those that none takes."""
    for candidate in candidates:
        for name, checks in filters.items():
            if candidate.filter is not None or name not in context.settings.filters:
                continue
            reason = next(filter(None, (check(candidate, context) for check in checks)), None)
            if reason:
                candidate.drop(name, reason)
    return [candidate for candidate in candidates if candidate.filter is None]


def _off_band(of: str, text: str, context: Context) -> str | None:
    low, high = context.band(of)
    if low <= len(text) <= high:
        return None
    return f"the {of} has {len(text)} characters, the examples suggest {low:.0f} to {high:.0f}"


def _folded(text: str) -> str:
    return " ".join(words(text))
