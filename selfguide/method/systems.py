"""All that is compared: floors, the untuned model asked in several ways, and what was tuned.

A new system is a new entry in `_floors`, `_untuned`, `_untuned_scores` or `_tuned`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

from selfguide.method.answering import Answerer, Decision, OnProgress, Scale, both
from selfguide.method.expert import (
    Answer,
    Expert,
    Way,
    draw_unlabelled,
    estimate_bias,
    likeliest,
)
from selfguide.prompts import TEMPLATES, Asking
from selfguide.prompts.prompts import Template
from selfguide.tasks import EvalRow, Task

Group = Literal["floor", "untuned", "tuned"]
Spread = Literal["none", "best", "own"]


class Answering(Protocol):
    """Something that answers. Its `repr` tells all that shapes its answers beside the model."""

    @property
    def asking(self) -> Asking | None:
        """Prompt and adapter; None if it asks no model."""

    def answer(
        self, answerer: Answerer, inputs: Sequence[str], progress: OnProgress = None
    ) -> list[Answer]:
        """An answer for each input."""


@dataclass(frozen=True)
class Constant:
    """Answers every input alike."""

    label: str
    asking: ClassVar[Asking | None] = None

    def answer(
        self, answerer: Answerer, inputs: Sequence[str], progress: OnProgress = None
    ) -> list[Answer]:
        return [Answer(self.label, self.label)] * len(inputs)


@dataclass(frozen=True)
class Copy:
    """Answers with the input."""

    asking: ClassVar[Asking | None] = None

    def answer(
        self, answerer: Answerer, inputs: Sequence[str], progress: OnProgress = None
    ) -> list[Answer]:
        return [Answer(text) for text in inputs]


@dataclass(frozen=True)
class Calibrated:
    """Label scores less a bias that is estimated first, on other inputs than those answered."""

    asking: Asking
    unlabelled: tuple[tuple[str, str | None], ...]
    seed: int

    def answer(
        self, answerer: Answerer, inputs: Sequence[str], progress: OnProgress = None
    ) -> list[Answer]:
        bias = estimate_bias(answerer, self.asking, self.unlabelled, self.seed, progress)
        return Way(self.asking, "bias_removed", bias).answer(answerer, inputs, progress)


@dataclass(frozen=True)
class Both:
    """Label scores and channel scores together, as the annotator of the training pairs uses them.

    Their scales are found on other inputs than those answered.
    """

    asking: Asking
    unlabelled: tuple[tuple[str, str | None], ...]
    seed: int

    def answer(
        self, answerer: Answerer, inputs: Sequence[str], progress: OnProgress = None
    ) -> list[Answer]:
        known = draw_unlabelled(self.unlabelled, self.seed)
        asked, texts = [label for _, label in known], [text for text, _ in known]
        parts = [
            answerer.label_scores([*texts, *inputs], self.asking, progress),
            answerer.channel_scores([*texts, *inputs], self.asking.adapter, progress),
        ]
        if known:
            count = len(known)
            parts = [Scale.of(part[:count], asked).apply(part[count:]) for part in parts]
        return [likeliest(row, list(answerer.task.labels)) for row in both(*parts)]


@dataclass(frozen=True)
class System:
    """One row of the comparison.

    Args:
        key: its name in files.
        title: its name for readers.
        group: floor, untuned or tuned.
        how: what it does, in a line.
        way: answers the inputs.
        spread: whether it also runs under the other prompt templates; its score is then that of the
            "best" one, or of its "own".
    """

    key: str
    title: str
    group: Group
    how: str
    way: Answering
    spread: Spread = "none"

    def variants(self) -> dict[str, Answering]:
        """Its way under each prompt template it runs under, its own first."""
        way = self.way
        if self.spread == "none" or not isinstance(way, Way):
            return {"own": way}
        own = way.asking.template
        ordered = (own, *(each for each in TEMPLATES if each != own))
        return {each: replace(way, asking=replace(way.asking, template=each)) for each in ordered}


@dataclass(frozen=True)
class Contest:
    """What the systems are made from.

    Args:
        task: what they answer.
        template: the run's own.
        unlabelled: inputs for label biases, each with the label that it was asked for.
        seed: of the run.
        rows: that they are judged by.
        expert: None where nothing can judge it.
        examples_only: how the adapter of the examples alone is asked; None like the expert.
    """

    task: Task
    template: Template
    unlabelled: tuple[tuple[str, str | None], ...]
    seed: int
    rows: Sequence[EvalRow]
    expert: Expert | None
    examples_only: Asking | None


def all_systems(contest: Contest) -> list[System]:
    """Every system that suits the task, floors first, the expert last."""
    return [*_floors(contest), *_untuned(contest), *_tuned(contest)]


def _floors(contest: Contest) -> list[System]:
    if not contest.task.is_classification:
        return [System("copy", "Copy of the input", "floor", "repeats its input", Copy())]
    [(label, _)] = Counter(label for row in contest.rows for label in row.outputs).most_common(1)
    how = f'always answers "{label}", the most frequent label of the evaluation rows'
    return [System("majority", "Majority label", "floor", how, Constant(label))]


def _untuned(contest: Contest) -> list[System]:
    shown, bare = Asking(contest.template), Asking(contest.template, shots=False)
    zero_shot = "the untuned model's text after the instruction alone"
    few_shot = (
        f"the untuned model's text after the instruction and {len(contest.task.examples)} "
        f"examples, cut at its stop; of {len(TEMPLATES)} templates the one that does best on these "
        "very rows"
    )
    return [
        System("zero_shot", "Zero-shot", "untuned", zero_shot, Way(bare, "greedy")),
        System("few_shot", "Few-shot", "untuned", few_shot, Way(shown, "greedy"), "best"),
        *(_untuned_scores(contest, shown) if contest.task.is_classification else ()),
    ]


def _untuned_scores(contest: Contest, shown: Asking) -> list[System]:
    unlabelled, seed = contest.unlabelled, contest.seed
    entries: list[tuple[str, str, str, Answering]] = [
        (
            "few_shot_labels",
            "Few-shot, label scores",
            "the label to which the untuned model gives the highest probability after the examples",
            Way(shown, "direct"),
        ),
        (
            "few_shot_bias_removed",
            "Few-shot, bias removed",
            "the same, less each label's mean score over synthetic inputs",
            Calibrated(shown, unlabelled, seed),
        ),
        (
            "few_shot_channel",
            "Few-shot, channel",
            "the label after which the untuned model finds the input most probable",
            Way(shown, "channel"),
        ),
        (
            "few_shot_both",
            "Few-shot, labels and channel",
            "both of these together, biases removed: the annotator without any training",
            Both(shown, unlabelled, seed),
        ),
    ]
    return [System(key, title, "untuned", how, way) for key, title, how, way in entries]


def _tuned(contest: Contest) -> list[System]:
    systems: list[System] = []
    if contest.examples_only is not None:
        systems += _of_examples(contest, contest.examples_only)
    if contest.expert is not None:
        systems += _of_expert(contest, contest.expert)
    return systems


def _of_examples(contest: Contest, asking: Asking) -> list[System]:
    labelled = contest.task.is_classification
    how = f"LoRA on the {len(contest.task.examples)} examples alone, no synthetic data"
    title = "Tuned on the examples only"
    plain = System(
        "examples_only",
        title,
        "tuned",
        f"{how}; the likeliest label" if labelled else how,
        Way(asking, "direct" if labelled else "greedy"),
    )
    if not labelled:
        return [plain]
    calibrated = Calibrated(asking, contest.unlabelled, contest.seed)
    how = f"{how}; the likeliest label, label bias removed"
    key = "examples_only_bias_removed"
    return [plain, System(key, f"{title}, bias removed", "tuned", how, calibrated)]


_READINGS: dict[Decision, str] = {
    "greedy": "its text",
    "direct": "its likeliest label",
    "bias_removed": "its likeliest label, label bias removed",
    "channel": "the label after which it finds the input most probable",
}


def _of_expert(contest: Contest, expert: Expert) -> list[System]:
    way = expert.way
    shipped = System(
        "expert", "Expert", "tuned", f"the expert: {_READINGS[way.decision]}", way, "own"
    )
    if not contest.task.is_classification:
        return [shipped]
    others: dict[Decision, tuple[str, Answering]] = {
        "greedy": ("Expert, as text", Way(way.asking, "greedy")),
        "direct": ("Expert, label scores", Way(way.asking, "direct")),
        "bias_removed": (
            "Expert, bias removed",
            Calibrated(way.asking, contest.unlabelled, contest.seed),
        ),
    }
    return [
        *(
            System(
                f"expert_{decision}",
                title,
                "tuned",
                f"the same adapter: {_READINGS[decision]}",
                other,
            )
            for decision, (title, other) in others.items()
            if decision != way.decision
        ),
        shipped,
    ]


def prompt_tokens(answerer: Answerer, way: Answering, inputs: Sequence[str]) -> int | None:
    """Tokens of a query's prompt, the mean over the inputs; None for what reads no prompt.

    The channel reads a prompt and the input once for every label.
    """
    if way.asking is None:
        return None
    if isinstance(way, Way) and way.decision == "channel":
        return _channel_tokens(answerer, inputs)
    texts = [answerer.prompts.answer(text, way.asking) for text in inputs]
    mean = round(sum(map(len, answerer.llm.tokenizer.encode_batch(texts))) / len(texts))
    return mean + _channel_tokens(answerer, inputs) if isinstance(way, Both) else mean


def _channel_tokens(answerer: Answerer, inputs: Sequence[str]) -> int:
    task, tokenizer = answerer.task, answerer.llm.tokenizer
    texts = [answerer.prompts.record(task.examples, label) for label in task.labels]
    shared = sum(map(len, tokenizer.encode_batch(texts)))
    read = sum(answerer.count(answerer.prompts.input(text)) for text in inputs)
    return shared + round(len(task.labels) * read / len(inputs))
