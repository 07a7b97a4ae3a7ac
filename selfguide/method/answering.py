"""Asking the model for outputs: as text, or as probabilities of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from engine import LLM, Completion, Progress, SamplingParams, Scored
from engine.serving.prompts import Text
from engine.text.tokenizer import Tokenizer
from selfguide.prompts import Asking, Prompts
from selfguide.tasks import Task

Scores = NDArray[np.float64]
Decision = Literal["greedy", "direct", "bias_removed", "channel"]
OnProgress = Callable[[Progress], None] | None

_CHANNEL_WEIGHT = 0.5  # of p(input | label) beside p(label | input), both of spread one


@dataclass(frozen=True)
class Answerer:
    """A model that does one task; which adapter does it is said with each question."""

    llm: LLM
    task: Task
    prompts: Prompts

    def sample(
        self,
        inputs: Sequence[str],
        asking: Asking,
        params: SamplingParams,
        seeds: Sequence[int],
        progress: OnProgress = None,
    ) -> list[list[Completion]]:
        """`params.n` outputs drawn for each input, with a seed each, cut at the task's stop."""
        asked = [
            replace(params, stop=self.prompts.stop, seed=seed, max_tokens=self.budget(text))
            for text, seed in zip(inputs, seeds, strict=True)
        ]
        texts = [self.prompts.answer(text, asking) for text in inputs]
        flat = self.llm.generate(texts, asked, asking.adapter, progress)
        return [flat[start : start + params.n] for start in range(0, len(flat), params.n)]

    def greedy(
        self, inputs: Sequence[str], asking: Asking, progress: OnProgress = None
    ) -> list[str]:
        """The most likely output of each input, cut at its stop; "" where it does not fit."""
        params = SamplingParams(temperature=0.0)
        drawn = self.sample(inputs, asking, params, [0] * len(inputs), progress)
        return [row[0].text.strip() for row in drawn]

    def label_scores(
        self, inputs: Sequence[str], asking: Asking, progress: OnProgress = None
    ) -> Scores:
        """log p(label | input) over the closed set of labels: `[inputs, labels]`."""
        prompts = [self.prompts.answer(text, asking) for text in inputs]
        completions = label_ids(self.prompts, self.llm.tokenizer, asking)
        return self._scored(prompts, completions, asking.adapter, progress)

    def channel_scores(
        self, inputs: Sequence[str], adapter: str | None = None, progress: OnProgress = None
    ) -> Scores:
        """log p(input | label), normalised over labels (the noisy channel, arXiv 2108.04106).

        The label stands in words before the input, after the task's examples in the same form.
        """
        examples, labels = self.task.examples, list(self.task.labels)
        prompts = [self.prompts.record(examples, label) for label in labels]
        columns = []
        for prompt in prompts:
            texts = [self.prompts.input(text) for text in inputs]
            rows = self._nested([prompt], [texts], adapter, progress)[0]
            columns.append([each.logprob for each in rows])
        return log_softmax(np.array(columns, np.float64).T)

    def budget(self, input: str) -> int:
        """The most tokens that an answer may take: twice what the examples lead to expect."""
        longest, ratio = self._lengths
        return 16 + 2 * max(longest, round(ratio * self.count(input)))

    @cached_property
    def _lengths(self) -> tuple[int, float]:
        """Tokens of the examples' longest output, and the most per token of their inputs."""
        pairs = [(self.count(e.input), self.count(e.output)) for e in self.task.examples]
        if self.task.is_classification:
            return max(self.count(label) for label in self.task.labels), 0.0
        return max(o for _, o in pairs), max(o / max(i, 1) for i, o in pairs)

    def count(self, text: str) -> int:
        """Tokens of a text of the task."""
        return len(self.llm.tokenizer.encode(text, bos=False, special=False))

    def _scored(
        self,
        prompts: Sequence[str],
        completions: Sequence[Sequence[int]],
        adapter: str | None,
        progress: OnProgress,
    ) -> Scores:
        rows = self._nested(prompts, [completions] * len(prompts), adapter, progress)
        logprobs = [[each.logprob for each in row] for row in rows]
        return log_softmax(np.array(logprobs, np.float64).reshape(len(prompts), len(completions)))

    def _nested(
        self,
        prompts: Sequence[str],
        completions: Sequence[Sequence[Text]],
        adapter: str | None,
        progress: OnProgress,
    ) -> list[list[Scored]]:
        return cast("list[list[Scored]]", self.llm.score(prompts, completions, adapter, progress))


def label_ids(prompts: Prompts, tokenizer: Tokenizer, asking: Asking) -> list[list[int]]:
    """The labels' tokens; with what ends an answer where one label begins like another.

    Adapters learn to end with an end token, the bare model goes on as its prompt does.
    """
    texts = [prompts.completion(label, asking) for label in prompts.task.labels]
    ids = [tokenizer.encode_continuation(text) for text in texts]
    if not any(a is not b and b[: len(a)] == a for a in ids for b in ids):
        return ids
    boundary = prompts.boundary(asking) if asking.adapter is None else None
    if boundary is None:
        return [[*each, tokenizer.eos_ids[0]] for each in ids]
    return [tokenizer.encode_continuation(text + boundary) for text in texts]


def log_softmax(scores: Scores) -> Scores:
    """Rows normalised to log-probabilities."""
    shifted = scores - scores.max(axis=1, keepdims=True, initial=-np.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


@dataclass(frozen=True)
class Scale:
    """How scores lie over unlabelled inputs, so that others can be put beside them.

    Attributes:
        bias: `[labels]`, see `label_bias`.
        spread: standard deviation over inputs and labels once the bias is removed.
    """

    bias: Scores
    spread: float

    @classmethod
    def of(cls, scores: Scores, asked: Sequence[str | None] | None = None) -> Scale:
        """The scale of these scores `[inputs, labels]`."""
        bias = label_bias(scores, asked)
        return cls(bias, float((scores - bias).std()) or 1.0)

    def apply(self, scores: Scores) -> Scores:
        """Scores without bias, of spread one."""
        return np.asarray((scores - self.bias) / self.spread)


def both(direct: Scores, channel: Scores) -> Scores:
    """Label scores and channel scores together, both on a `Scale`."""
    return np.asarray(direct + _CHANNEL_WEIGHT * channel)


def label_bias(scores: Scores, asked: Sequence[str | None] | None = None) -> Scores:
    """What the model gives each label whatever the input: its mean score, `[labels]`, mean zero.

    Domain-context calibration (arXiv 2305.19148) with whole in-domain inputs. Where it is known
    which label each input was asked for, every label's inputs count alike.
    """
    groups: dict[str | None, list[int]] = {}
    for row, label in enumerate([None] * len(scores) if asked is None else asked):
        groups.setdefault(label, []).append(row)
    means = np.array([scores[rows].mean(axis=0) for rows in groups.values()])
    bias = means.mean(axis=0)
    return np.asarray(bias - bias.mean())
