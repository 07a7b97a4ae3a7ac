"""Step 1: the model invents inputs, by continuing records or by the paper's request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine import SamplingParams
from engine.seeds import mix
from selfguide.method.answering import Answerer, OnProgress
from selfguide.method.pairs import Candidate
from selfguide.method.reverse import ADAPTER as WRITER
from selfguide.method.reverse import Writer
from selfguide.method.shape import Shape
from selfguide.observer import Watch
from selfguide.settings import Settings
from selfguide.tasks import Example

# Earlier candidates shown in a prompt, at most.
_EARLIER = 3
_EARLIER_IN_META = 10  # as in the paper
_SHARING = 4  # candidates with the same label asked for whose prompt is one: it is read once


@dataclass(frozen=True)
class Inventor:
    """Writes new inputs for a task.

    A candidate depends on its id, the seed, earlier rounds and the labels asked for before it.
    """

    answerer: Answerer
    settings: Settings

    def prepare(self, progress: Watch | None = None) -> None:
        """Learns what inventing takes, in a minute at most, unless that was done or is not needed.

        Args:
            progress: called after each step of a training; may raise.
        """
        if self._reverse:
            self._writer.learn(progress)

    def invent(
        self,
        first_id: int,
        round: int,
        asked: Sequence[str | None],
        earlier: Sequence[Candidate],
        progress: OnProgress = None,
    ) -> list[Candidate]:
        """One candidate for each label of `asked` (None without labels).

        Args:
            first_id: id of the first of them.
            round: noted with them.
            asked: the label that each shall have.
            earlier: candidates of earlier rounds that may be shown as examples.
            progress: called as inputs are finished.
        """
        self.prepare()
        candidates = [
            self._blank(first_id + place, round, label) for place, label in enumerate(asked)
        ]
        shown = self._shown(candidates, earlier)
        adapter: str | None = None
        if self._reverse:
            self._writer.ask(candidates, [self._records(each) for each in shown], progress)
            adapter = WRITER
            shown = [[] for _ in candidates]
        pairs = zip(candidates, shown, strict=True)
        waiting = [(each, self._prompt(each, seen)) for each, seen in pairs if each.filter is None]
        self._write(waiting, adapter, progress)
        return candidates

    def _blank(self, id: int, round: int, asked: str | None) -> Candidate:
        seed = mix(self.settings.seed, id)
        return Candidate(id, round, self.settings.generator, "", asked, seed)

    def _write(
        self,
        waiting: Sequence[tuple[Candidate, str]],
        adapter: str | None,
        progress: OnProgress,
    ) -> None:
        """Gives candidates the inputs that continue their prompts."""
        prompts = [prompt for _, prompt in waiting]
        params = [self._params(candidate) for candidate, _ in waiting]
        drawn = self.answerer.llm.generate(prompts, params, adapter, progress)
        for (candidate, _), completion in zip(waiting, drawn, strict=True):
            candidate.input = f"{self._start}{completion.text}".strip()
            if completion.error:
                candidate.drop("length", completion.error)
            elif not candidate.input:
                candidate.drop("noise", "the input is empty")
            elif completion.finish_reason == "length":
                candidate.drop("length", "did not end where an input of this task would")

    @property
    def _shape(self) -> Shape:
        return Shape.of([example.input for example in self.answerer.task.examples])

    @property
    def _start(self) -> str:
        return self._shape.start if self.settings.generator != "meta" else ""

    @property
    def _reverse(self) -> bool:
        """Labels are asked for as they are: only outputs in free text have to be invented."""
        return self.settings.generator == "reverse" and not self.answerer.task.is_classification

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self.answerer, self.settings)

    def _shown(
        self, candidates: Sequence[Candidate], earlier: Sequence[Candidate]
    ) -> list[list[Candidate]]:
        """The earlier candidates that each one's prompt shows."""
        sharing = _SHARING if self._labelled_records else 1
        turns: Counter[str | None] = Counter()
        picked: dict[str | None, list[Candidate]] = {}
        shown = []
        for candidate in candidates:
            if turns[candidate.asked] % sharing == 0:
                picked[candidate.asked] = self._picked(candidate, earlier)
            turns[candidate.asked] += 1
            shown.append(picked[candidate.asked])
        return shown

    @property
    def _labelled_records(self) -> bool:
        return self.settings.generator != "meta" and self.answerer.task.is_classification

    def _picked(self, candidate: Candidate, earlier: Sequence[Candidate]) -> list[Candidate]:
        """A few earlier candidates, drawn by this one's seed."""
        random = np.random.default_rng(candidate.seed)
        most = _EARLIER_IN_META if self.settings.generator == "meta" else _EARLIER
        count = min(len(earlier), int(random.integers(1, most + 1)))
        picked = random.choice(len(earlier), count, replace=False) if count else ()
        return [earlier[int(index)] for index in picked]

    def _records(self, shown: Sequence[Candidate]) -> list[Example]:
        return [Example(each.input, each.output) for each in shown if each.output]

    def _prompt(self, candidate: Candidate, shown: Sequence[Candidate]) -> str:
        prompts, examples = self.answerer.prompts, self.answerer.task.examples
        if self.settings.generator == "meta":
            inputs = [e.input for e in examples] + [c.input for c in shown]
            return prompts.meta(inputs, candidate.asked)
        records = [*examples, *self._records(shown)]
        return prompts.record(records, candidate.asked, self._start)

    def _params(self, candidate: Candidate) -> SamplingParams:
        longest = max(self.answerer.count(e.input) for e in self.answerer.task.examples)
        return SamplingParams(
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            top_k=self.settings.top_k,
            max_tokens=16 + 2 * longest,
            stop=() if self.settings.generator == "meta" else self._stop,
            seed=candidate.seed,
        )

    @property
    def _stop(self) -> tuple[str, ...]:
        """What ends a record's input: its line, its paragraph, or the next record."""
        ends = {"one": ("\n",), "several": ("\n\n", "\nOutput:", "\nInput")}
        return ends.get(self._shape.lines, ("\nOutput:", "\nInput"))
