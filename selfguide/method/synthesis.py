"""Steps 1 to 3 in rounds: invent, annotate, filter, and again for what is still missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.seeds import mix
from selfguide.method.annotate import Annotator
from selfguide.method.answering import Answerer
from selfguide.method.choice import Choice, label_pool
from selfguide.method.collapse import collapsed
from selfguide.method.filters import INPUT_FILTERS, OUTPUT_FILTERS, Context, sift
from selfguide.method.inputs import Inventor
from selfguide.method.pairs import Candidate, Pair, answered, survivors
from selfguide.observer import Observer, stoppable
from selfguide.settings import Settings

_ROUNDS_OF_PATIENCE = 3  # before a hopeless yield ends the synthesis


@dataclass(frozen=True)
class Synthesised:
    """What synthesis made.

    Attributes:
        candidates: the ledger.
        training: the user's examples and the synthetic pairs to train on.
        held_out: synthetic pairs kept from training.
        warnings: lines for the report.
    """

    candidates: list[Candidate]
    training: list[Pair]
    held_out: list[Pair]
    warnings: list[str]


def synthesise(
    answerer: Answerer,
    settings: Settings,
    known: Sequence[Candidate],
    save: Callable[[list[Candidate]], None],
    observer: Observer,
) -> Synthesised:
    """Makes the training pairs.

    Args:
        answerer: the model and the task.
        settings: of the run.
        known: candidates of rounds that an earlier run finished.
        save: called with the whole ledger after each round and at the end.
        observer: sees progress and warnings, and may stop at any step: the round in hand is lost.

    Raises:
        TooFewPairs: fewer than `settings.at_least` survive; the ledger was saved.
    """
    rounds = _Rounds(answerer, settings, list(known), observer)
    while rounds.go_on():
        rounds.run()
        save(rounds.ledger)
        observer.pause_point()
    choice = Choice(rounds.ledger, answerer.task, settings, observer)
    kept = choice.keep()
    save(rounds.ledger)
    choice.require_enough(kept)
    held_out = choice.held_out(kept)
    examples = [Pair(e.input, e.output, "example") for e in answerer.task.examples]
    pairs = {each.id: Pair(each.input, each.output or "", "synthetic", each.id) for each in kept}
    return Synthesised(
        rounds.ledger,
        examples + [pair for id, pair in pairs.items() if id not in held_out],
        [pairs[id] for id in held_out],
        choice.warnings,
    )


def preview(
    answerer: Answerer, settings: Settings, count: int, observer: Observer
) -> list[Candidate]:
    """The run's first `count` candidates, with their annotations and verdicts so far."""
    rounds = _Rounds(answerer, settings, [], observer)
    while len(rounds.ledger) < count and rounds.go_on():
        rounds.run(count - len(rounds.ledger))
    for candidate in rounds.survivors:
        candidate.kept = True
    return rounds.ledger


class _Rounds:
    """The ledger and what is still missing from it."""

    def __init__(
        self, answerer: Answerer, settings: Settings, ledger: list[Candidate], observer: Observer
    ) -> None:
        self.answerer, self.settings, self.observer = answerer, settings, observer
        self.task = answerer.task
        self.ledger = ledger
        self.annotator = Annotator(answerer, settings)
        self._inventor = Inventor(answerer, settings)
        self._context = Context(self.task, settings)
        self.labels: list[str | None] = list(self.task.labels) or [None]
        self._pool = label_pool(self.task, settings)
        for candidate in self.annotated:
            self._context.remember(candidate.input, candidate.id)
        self._judge()

    @property
    def annotated(self) -> list[Candidate]:
        """Candidates whose inputs passed the filters."""
        return [each for each in self.ledger if each.scores or each.agreement is not None]

    @property
    def survivors(self) -> list[Candidate]:
        return survivors(self.ledger)

    def missing(self) -> dict[str | None, int]:
        """Pairs that each label's pool still needs."""
        have = Counter(each.output if self.task.labels else None for each in self.survivors)
        return {label: max(self._pool - have[label], 0) for label in self.labels}

    def go_on(self) -> bool:
        """Whether another round is needed, allowed and not hopeless."""
        tried = len(self.ledger)
        if not any(self.missing().values()) or tried >= self.settings.max_candidates:
            return False
        if tried < _ROUNDS_OF_PATIENCE * self.settings.round_size:
            return True
        in_sight = len(self.survivors) / tried * self.settings.max_candidates
        return in_sight >= self.settings.at_least and not collapsed(
            answered(self.ledger), self.task
        )

    def run(self, most: int | None = None) -> None:
        """One round: the user's own inputs as long as there are any, then invented ones.

        Args:
            most: how many candidates of the round are made; None for all.
        """
        left = self.settings.max_candidates - len(self.ledger)
        count = min(self.settings.round_size, left)
        number = self.ledger[-1].round + 1 if self.ledger else 0
        fresh = self._own(number, count)[:most] or self._invented(
            number, self._wanted(count)[:most]
        )
        for candidate in fresh:
            self._sift_input(candidate)
        sound = [candidate for candidate in fresh if candidate.filter is None]
        self.annotator.annotate(sound, stoppable(self.observer, f"round {number + 1}: annotating"))
        self.ledger += fresh
        self._judge()
        self.observer.say(
            f"round {number + 1}: {len(fresh)} inputs, {len(sound)} annotated, "
            f"{len(self.survivors)} pairs so far, {self._still_wanted()}"
        )

    def _still_wanted(self) -> str:
        missing = {label: count for label, count in self.missing().items() if count}
        labels = [f"{label} {count}" for label, count in missing.items() if label is not None]
        listed = f" ({', '.join(labels)})" if labels else ""
        return f"{sum(missing.values())} still wanted{listed}"

    def _own(self, number: int, count: int) -> list[Candidate]:
        used = sum(each.source == "user" for each in self.ledger)
        texts = self.task.inputs[used : used + count]
        start = len(self.ledger)
        return [
            Candidate(start + i, number, "user", text, None, mix(self.settings.seed, start + i))
            for i, text in enumerate(texts)
        ]

    def _invented(self, number: int, asked: Sequence[str | None]) -> list[Candidate]:
        self._inventor.prepare(stoppable(self.observer, "learning to write inputs"))
        watch = stoppable(self.observer, f"round {number + 1}: inventing inputs")
        return self._inventor.invent(len(self.ledger), number, asked, self.survivors, watch)

    def _wanted(self, count: int) -> list[str | None]:
        """Labels to ask for in turn: more of those that lack more, or that fail more often."""
        tried = Counter(each.asked for each in self.ledger)
        kept = Counter(each.asked for each in self.survivors)
        need = {
            label: missing * (tried[label] + 2) / (kept[label] + 1)
            for label, missing in self.missing().items()
        }
        total = sum(need.values())
        if not total:
            need, total = dict.fromkeys(self.labels, 1.0), float(len(self.labels))
        ends = np.cumsum([share / total * count for share in need.values()])
        shares = Counter(int(np.searchsorted(ends, i + 0.5)) for i in range(count))
        turns = [((i + 0.5) / n, which) for which, n in shares.items() for i in range(n)]
        return [self.labels[which] for _, which in sorted(turns)]

    def _sift_input(self, candidate: Candidate) -> None:
        if candidate.source == "user":
            sift([candidate], {"duplicate": INPUT_FILTERS["duplicate"]}, self._context)
        else:
            sift([candidate], INPUT_FILTERS, self._context)
        if candidate.filter is None:
            self._context.remember(candidate.input, candidate.id)

    def _judge(self) -> None:
        """Verdicts on all annotations anew: the label bias is known better after each round."""
        judged = answered(self.ledger)
        for candidate in judged:
            candidate.kept, candidate.filter, candidate.reason = False, None, None
        self.annotator.decide(judged)
        sift(judged, OUTPUT_FILTERS, self._context)
