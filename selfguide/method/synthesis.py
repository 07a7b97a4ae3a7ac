"""Steps 1 to 3 in rounds: invent, annotate, filter, and again for what is still missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from engine.seeds import mix
from selfguide.errors import TooFewPairs
from selfguide.method.annotate import Annotator
from selfguide.method.answering import Answerer
from selfguide.method.collapse import at_chance, collapsed
from selfguide.method.filters import INPUT_FILTERS, OUTPUT_FILTERS, Context, sift
from selfguide.method.inputs import Inventor
from selfguide.method.pairs import Candidate, Pair
from selfguide.observer import Observer, stoppable
from selfguide.settings import Settings
from selfguide.tasks import Task

_HELD_OUT = 0.1  # share of the synthetic pairs that is not trained on
_HELD_OUT_TO_JUDGE = 0.25  # the same where no evaluation rows judge the expert, ...
_ENOUGH_TO_JUDGE = 12  # ... or so many, if they are a third at most
_FEWEST_TO_SPLIT = 20  # pairs below which all are trained on
_LOPSIDED = 2  # a label may have so many times the pairs of the rarest one
_ROUNDS_OF_PATIENCE = 3  # before a hopeless yield ends the synthesis
_SPLITTING = 2  # a salt


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
    return _Choice(rounds).made(save)


def held_out_share(task: Task) -> float:
    """The share of the synthetic pairs kept from training: more where they judge the expert."""
    return _HELD_OUT if task.eval_rows else _HELD_OUT_TO_JUDGE


def preview(
    answerer: Answerer, settings: Settings, count: int, observer: Observer
) -> list[Candidate]:
    """The run's first `count` candidates, with their annotations and verdicts so far."""
    rounds = _Rounds(answerer, settings, [], observer)
    while len(rounds.ledger) < count and rounds.go_on():
        rounds.run(count - len(rounds.ledger))
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
        self.quota = ceil(settings.pairs / len(self.labels))
        for candidate in self.annotated:
            self._context.remember(candidate.input, candidate.id)
        self._judge()

    @property
    def annotated(self) -> list[Candidate]:
        """Candidates whose inputs passed the filters."""
        return [each for each in self.ledger if each.scores or each.agreement is not None]

    @property
    def answered(self) -> list[Candidate]:
        """Those of them that annotation had an answer for."""
        return [each for each in self.ledger if each.scores or each.output is not None]

    @property
    def survivors(self) -> list[Candidate]:
        return [each for each in self.answered if each.filter is None]

    def missing(self) -> dict[str | None, int]:
        """Pairs that each label still needs."""
        have = Counter(each.output if self.task.labels else None for each in self.survivors)
        return {label: max(self.quota - have[label], 0) for label in self.labels}

    def go_on(self) -> bool:
        """Whether another round is needed, allowed and not hopeless."""
        tried = len(self.ledger)
        if not any(self.missing().values()) or tried >= self.settings.max_candidates:
            return False
        if tried < _ROUNDS_OF_PATIENCE * self.settings.round_size:
            return True
        in_sight = len(self.survivors) / tried * self.settings.max_candidates
        return in_sight >= self.settings.at_least and not collapsed(self.answered, self.task)

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
        for candidate in self.answered:
            candidate.kept, candidate.filter, candidate.reason = False, None, None
        self.annotator.decide(self.answered)
        sift(self.answered, OUTPUT_FILTERS, self._context)


class _Choice:
    """The last word on the ledger: which survivors are trained on, held out, or too many."""

    def __init__(self, rounds: _Rounds) -> None:
        self.rounds, self.settings, self.task = rounds, rounds.settings, rounds.task
        self.warnings: list[str] = []
        self.missing = ""

    def made(self, save: Callable[[list[Candidate]], None]) -> Synthesised:
        self._drop_if_collapsed()
        doubt = at_chance(self.rounds.survivors and self.rounds.answered)
        if doubt:
            self._warn(doubt)
        self._balance()
        kept = self.rounds.survivors
        for candidate in kept:
            candidate.kept = True
        save(self.rounds.ledger)
        self._check(kept)
        held_out = self._held_out(kept)
        examples = [Pair(e.input, e.output, "example") for e in self.task.examples]
        pairs = {
            each.id: Pair(each.input, each.output or "", "synthetic", each.id) for each in kept
        }
        return Synthesised(
            self.rounds.ledger,
            examples + [pair for id, pair in pairs.items() if id not in held_out],
            [pairs[id] for id in held_out],
            self.warnings,
        )

    def _drop_if_collapsed(self) -> None:
        reason = collapsed(self.rounds.answered, self.task)
        if reason is None:
            return
        self._warn(f"{reason}; none of these pairs is trained on")
        for candidate in self.rounds.survivors:
            candidate.drop("collapsed", reason)

    def _balance(self) -> None:
        """No label far ahead of the rarest, none above its share of the pairs wanted."""
        survivors = self.rounds.survivors
        count = Counter(each.output if self.task.labels else None for each in survivors)
        if survivors and len(count) < len(self.rounds.labels):
            missing = ", ".join(repr(label) for label in self.task.labels if not count[label])
            self.missing = f"no pair of {missing} survived"
            for candidate in survivors:
                candidate.drop("balance", f"{self.missing}, and without it nothing can be learnt")
            return
        most = min(self.rounds.quota, _LOPSIDED * min(count.values(), default=0))
        taken: Counter[str | None] = Counter()
        for candidate in survivors:
            label = candidate.output if self.task.labels else None
            taken[label] += 1
            if taken[label] > most:
                candidate.drop("balance", f"{most} pairs of its kind were kept before it")

    def _check(self, kept: Sequence[Candidate]) -> None:
        if len(kept) >= self.settings.pairs:
            return
        dropped = Counter(each.filter for each in self.rounds.ledger if each.filter)
        took = ", ".join(f"{name} {count}" for name, count in dropped.most_common())
        tried = len(self.rounds.ledger)
        line = (
            f"{len(kept)} of the {self.settings.pairs} pairs wanted survived of {tried} candidates"
            + (f" (dropped by {took})" if took else "")
            + (f"; {self.missing}" if self.missing else "")
        )
        self._warn(line)
        if len(kept) < self.settings.at_least:
            spent = tried >= self.settings.max_candidates
            more = f"try more inputs (--max-candidates {2 * tried}), " if spent else ""
            raise TooFewPairs(
                f"{line}; at least {self.settings.at_least} are needed to train: use a larger "
                f"model (--model), give inputs of your own (inputs_file), {more}or go on with what "
                f"there is (--at-least {len(kept)})"
            )

    def _held_out(self, kept: Sequence[Candidate]) -> list[int]:
        if len(kept) < _FEWEST_TO_SPLIT:
            return []
        random = np.random.default_rng(mix(self.settings.seed, _SPLITTING))
        ids = [candidate.id for candidate in kept]
        count = round(held_out_share(self.task) * len(ids))
        if not self.task.eval_rows:
            count = max(count, min(_ENOUGH_TO_JUDGE, len(ids) // 3))
        return sorted(random.choice(ids, count, replace=False).tolist())

    def _warn(self, line: str) -> None:
        self.warnings.append(line)
        self.rounds.observer.warn(line)
