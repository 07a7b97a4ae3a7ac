"""Free text the other way round: outputs are invented first, then inputs that would lead to them.

As in back-translation (arXiv 1511.06709) the side that is learnt to be written is then the model's
own plain text, and what is flawed ends up in the input, where it does less harm. A bare model
copies the output instead, so a small adapter learns from the task's examples to write inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine import LoraConfig, SamplingParams, TrainConfig, TrainExample
from engine.seeds import mix
from selfguide.method.answering import Answerer, OnProgress
from selfguide.method.pairs import Candidate
from selfguide.metrics.rouge import alike
from selfguide.observer import Watch
from selfguide.prompts import Asking
from selfguide.settings import Settings
from selfguide.tasks import Example

ADAPTER = "writer"

EPOCHS = 20  # usable pairs of 128 in a rewriting task, default model: 2 after 8, 14 after 20
_NEXT_RECORD = "\nOutput:"  # what a bare model may go on with, the input left out
_OUTPUT = 3  # a salt: outputs do not repeat the numbers that their inputs are drawn with


@dataclass
class Writer:
    """Invents outputs, and teaches the adapter `ADAPTER` to write inputs for them."""

    answerer: Answerer
    settings: Settings
    _learnt: bool = field(default=False, init=False)

    def learn(self, progress: Watch | None = None) -> None:
        """Trains the adapter, once: each example's input after its output, the others shown before.

        Args:
            progress: called after each step; whatever it raises leaves everything to be learnt.
        """
        if self._learnt:
            return
        adapters, examples = self.answerer.llm.adapters, self.answerer.task.examples
        if ADAPTER in adapters:
            adapters.drop(ADAPTER)
        adapters.new(ADAPTER, LoraConfig(rank=16, alpha=32), seed=self.settings.seed)
        prompts = self.answerer.prompts
        lessons = [
            TrainExample(
                prompts.record([each for each in examples if each is not own], own.output),
                prompts.input(own.input),
            )
            for own in examples
        ]
        config = TrainConfig(epochs=EPOCHS, batch_size=8, lr=2e-4, seed=self.settings.seed)
        self.answerer.llm.train(lessons, config, adapter=ADAPTER, progress=progress)
        self._learnt = True

    def ask(
        self,
        candidates: Sequence[Candidate],
        earlier: Sequence[Sequence[Example]],
        progress: OnProgress = None,
    ) -> None:
        """Invents an output for each candidate and notes it as what its input is asked for.

        Args:
            candidates: without inputs yet.
            earlier: records that each of them may see besides the task's examples.
            progress: called as outputs are finished.
        """
        prompts, examples = self.answerer.prompts, self.answerer.task.examples
        texts = [prompts.output([*examples, *shown]) for shown in earlier]
        params = [self._params(candidate) for candidate in candidates]
        drawn = self.answerer.llm.generate(texts, params, None, progress)
        for candidate, completion in zip(candidates, drawn, strict=True):
            candidate.asked = completion.text.strip()
            if completion.error:
                candidate.drop("length", completion.error)
            elif not candidate.asked:
                candidate.drop("length", "the invented output is empty")
            elif completion.finish_reason == "length":
                candidate.drop("length", "the invented output did not end where one would")

    def _params(self, candidate: Candidate) -> SamplingParams:
        longest = max(self.answerer.count(e.output) for e in self.answerer.task.examples)
        return SamplingParams(
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            top_k=self.settings.top_k,
            max_tokens=16 + 2 * longest,
            stop=(*self.answerer.prompts.stop, _NEXT_RECORD),
            seed=mix(candidate.seed, _OUTPUT),
        )


def confirm(
    answerer: Answerer, candidates: Sequence[Candidate], asking: Asking, progress: OnProgress = None
) -> None:
    """Gives candidates the outputs they were asked for.

    The agreement is the likeness (0-1) to what the model answers when it is asked the usual way
    round: the round trip that labels make, for free text.
    """
    if not candidates:
        return
    answers = answerer.greedy([each.input for each in candidates], asking, progress)
    for candidate, answer in zip(candidates, answers, strict=True):
        candidate.output = candidate.asked
        candidate.agreement = alike(answer, candidate.asked or "")
