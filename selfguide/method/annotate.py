"""Step 2: outputs for invented inputs, by label probabilities or by votes among samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine import Completion, SamplingParams
from engine.seeds import mix
from selfguide.errors import UserError
from selfguide.method.answering import Answerer, OnProgress, Scale, Scores, both
from selfguide.method.pairs import Candidate
from selfguide.method.reverse import confirm
from selfguide.metrics.parse import parse_label
from selfguide.metrics.rouge import alike
from selfguide.prompts import Asking
from selfguide.settings import Settings
from selfguide.tasks import Task

_VOTING = 1  # a salt: votes do not repeat the numbers that the input was drawn with


def check_annotator(settings: Settings, task: Task) -> None:
    """Raises UserError if the annotator would need labels, and the task has none."""
    if settings.annotator not in ("auto", "vote") and not task.is_classification:
        raise UserError(
            f"{task.source}: annotator: {settings.annotator} needs a task with labels; use vote"
        )


@dataclass(frozen=True)
class Annotator:
    """Gives candidates their outputs, with the bare model and the task's examples as its prompt."""

    answerer: Answerer
    settings: Settings

    @property
    def kind(self) -> str:
        """direct, bias_removed, channel, both or vote."""
        if self.settings.annotator != "auto":
            return self.settings.annotator
        return "both" if self.answerer.task.is_classification else "vote"

    def annotate(self, candidates: Sequence[Candidate], progress: OnProgress = None) -> None:
        """Notes scores of labels, or the votes' winner and its agreement, in `candidates`.

        Those that get neither are dropped, with an agreement of 0.
        """
        if not candidates:
            return
        if self.kind == "vote":
            labelled = self.answerer.task.is_classification
            reverse = [c for c in candidates if c.source == "reverse" and not labelled]
            confirm(self.answerer, reverse, self._asking, progress)
            self._vote([c for c in candidates if c not in reverse], progress)
        else:
            self._score(candidates, progress)

    def _score(self, candidates: Sequence[Candidate], progress: OnProgress) -> None:
        inputs = [candidate.input for candidate in candidates]
        tables = []
        if self.kind != "channel":
            tables.append(self.answerer.label_scores(inputs, self._asking, progress))
        if self.kind in ("channel", "both"):
            tables.append(self.answerer.channel_scores(inputs, progress=progress))
        labels = list(self.answerer.task.labels)
        for candidate, *rows in zip(candidates, *tables, strict=True):
            if np.isnan(rows).any():
                candidate.agreement = 0.0
                candidate.drop("length", "does not fit the model's context after the examples")
                continue
            named = [dict(zip(labels, map(float, row), strict=True)) for row in rows]
            candidate.scores, candidate.channel = named[0], named[1] if named[1:] else None

    def decide(self, candidates: Sequence[Candidate]) -> None:
        """Turns all scores so far into outputs: the likeliest label, label bias removed or not."""
        scored = [candidate for candidate in candidates if candidate.scores]
        if not scored:
            return
        labels = list(self.answerer.task.labels)
        scores = self._decisive(scored, labels)
        for candidate, row in zip(scored, scores, strict=True):
            best = int(row.argmax())
            candidate.output = labels[best]
            candidate.agreement = float(np.exp(row[best]) / np.exp(row).sum())

    def _decisive(self, scored: Sequence[Candidate], labels: Sequence[str]) -> Scores:
        """The scores that labels are chosen by: `[candidates, labels]`."""
        asked = [each.asked for each in scored]
        scores = scores_of([each.scores for each in scored], labels)
        if self.kind == "direct":
            return scores
        scale = Scale.of(scores, asked)
        if self.kind != "both":
            return scores - scale.bias
        channel = scores_of([each.channel for each in scored], labels)
        return both(scale.apply(scores), Scale.of(channel, asked).apply(channel))

    @property
    def _asking(self) -> Asking:
        return Asking(self.settings.template, shots=True)

    def _vote(self, candidates: Sequence[Candidate], progress: OnProgress) -> None:
        params = SamplingParams(
            n=self.settings.votes,
            temperature=self.settings.vote_temperature,
            top_k=self.settings.vote_top_k,
        )
        seeds = [mix(candidate.seed, _VOTING) for candidate in candidates]
        inputs = [candidate.input for candidate in candidates]
        drawn = self.answerer.sample(inputs, self._asking, params, seeds, progress)
        labels = list(self.answerer.task.labels)
        for candidate, samples in zip(candidates, drawn, strict=True):
            texts = [s.text.strip() if s.finish_reason != "length" else "" for s in samples]
            if labels:
                texts = [parse_label(text, labels) or "" for text in texts]
            candidate.output, candidate.agreement = elect(texts, exact=bool(labels))
            if candidate.output is None:
                candidate.drop(*_why_nothing(samples))


def _why_nothing(samples: Sequence[Completion]) -> tuple[str, str]:
    """The filter and the reason for votes of which none counts."""
    if samples[0].error:
        return "length", samples[0].error
    if all(sample.finish_reason == "length" for sample in samples):
        longest = max(len(sample.ids) for sample in samples)
        return "annotation", f"no sample ended within {longest} tokens"
    return "annotation", "no sample gave a usable output"


def scores_of(rows: Sequence[Mapping[str, float] | None], labels: Sequence[str]) -> Scores:
    """Scores as the ledger keeps them in an array: `[rows, labels]`."""
    values = [[(row or {})[label] for label in labels] for row in rows]
    return np.array(values, np.float64).reshape(len(values), len(labels))


def elect(texts: Sequence[str], *, exact: bool) -> tuple[str | None, float]:
    """The winner among samples and its agreement; "" counts as a vote for nothing.

    With `exact`, the most frequent text and its share of all votes (the paper's vote). Else the
    medoid, which is the text most like the others by ROUGE-L, and its mean likeness to them; long
    answers that differ by a word then support each other. The shortest wins a tie.
    """
    valid = [text for text in texts if text]
    if not valid:
        return None, 0.0
    support = {
        text: sum(float(text == other) if exact else alike(text, other) for other in valid)
        for text in dict.fromkeys(valid)
    }
    best = max(support, key=lambda text: (round(support[text], 9), -len(text)))
    return best, support[best] / len(texts)
