"""Scoring: log-probabilities of continuations, without drawing anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.adapters.lora import Adapter
from engine.errors import RequestError
from engine.serving.progress import Meter, Progress
from engine.serving.prompts import Text, check_ids, encode_prompts, one_per_prompt
from engine.serving.runner import Runner
from engine.serving.scheduler import Scheduler, Step
from engine.serving.sequence import Sequence
from kernels.upload import upload


@dataclass(frozen=True, slots=True)
class Scored:
    """A continuation's log-probability (natural logarithm) under the model.

    Attributes:
        ids: the continuation's tokens.
        logprob: the sum over its tokens; nan if it could not be scored.
        token_logprobs: of each token.
        error: why it could not be scored, in one line; None if it could.
    """

    ids: tuple[int, ...]
    logprob: float
    token_logprobs: tuple[float, ...]
    error: str | None = None


def score(
    runner: Runner,
    prompts: Rows[Text],
    completions: Rows[Text] | Rows[Rows[Text]],
    adapter: Adapter | Rows[Adapter | None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Scored] | list[list[Scored]]:
    """Log-probabilities of completions that follow prompts.

    K completions of one prompt cost one pass over the prompt and over their own tokens.

    Args:
        runner: model, tokenizer and cache.
        prompts: texts, or token ids.
        completions: one for each prompt, or a list for each prompt; texts (tokenized as
            continuations, so a leading space is theirs) or token ids.
        adapter: one for all prompts, or a list of one for each.
        progress: called a few times a second, and at the end; a completion counts as a request.

    Returns:
        Nested as `completions` is. One that does not fit the context says so in its `error`.

    Raises:
        RequestError: a prompt or completion makes no sense.
    """
    rows = encode_prompts(prompts, runner.tokenizer, runner.model.config.vocab_size)
    if isinstance(completions, str):
        raise RequestError("completions must be a list; put a single completion into brackets")
    if len(completions) != len(rows):
        raise RequestError(f"completions: {len(completions)} given for {len(rows)} prompts")
    adapters = one_per_prompt("adapter", adapter, len(rows))
    nested = not all(_is_text(entry) for entry in completions)
    groups: list[list[_Target]] = []
    for index, entry in enumerate(completions):
        name = f"completions[{index}]"
        if nested and _is_text(entry):
            raise RequestError(f"{name} must be a list of completions, as others are")
        texts: Rows[Any] = entry if nested else [entry]
        groups.append([_target(runner, text, name) for text in texts])
    _Scoring(runner, rows, groups, adapters, progress).run()
    scored = [[target.scored() for target in group] for group in groups]
    return scored if nested else [group[0] for group in scored]


@dataclass(slots=True, eq=False)
class _Target:
    """A continuation and what is known of it so far."""

    ids: tuple[int, ...]
    logprobs: list[float] = field(default_factory=list)
    error: str | None = None

    def scored(self) -> Scored:
        total = math.nan if self.error else math.fsum(self.logprobs)
        return Scored(self.ids, total, tuple(self.logprobs), self.error)


@dataclass(slots=True, eq=False, kw_only=True)
class _Forced(Sequence):
    """A prompt whose next token is the first of each of `targets`, or a prompt and all but the last
    token of the one target that it has been given to read."""

    targets: list[_Target]
    prompt_length: int
    reading: bool = False

    @property
    def first_needed(self) -> int:
        known = len(self.targets[0].logprobs) if self.reading else 0
        return self.prompt_length - 1 + known

    def wanted(self, position: int) -> list[tuple[_Target, int]]:
        """The tokens whose log-probability the hidden state at `position` gives."""
        at = position + 1 - self.prompt_length
        return [(target, target.ids[at]) for target in self.targets]


class _Scoring:
    """One call of `score`: `groups[i]` are the targets of `prompts[i]`."""

    def __init__(
        self,
        runner: Runner,
        prompts: list[list[int]],
        groups: list[list[_Target]],
        adapters: list[Adapter | None],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.runner = runner
        self.meter = Meter(progress, sum(map(len, groups)))
        self.done = self.tokens = 0
        self.scheduler: Scheduler[_Forced] = runner.scheduler()
        for index, (prompt, group, adapter) in enumerate(
            zip(prompts, groups, adapters, strict=True)
        ):
            targets = [target for target in group if self._fits(index, prompt, target)]
            self.done += len(group) - len(targets)
            if targets:
                self.scheduler.add(
                    _Forced(
                        tokens=prompt,
                        adapter=adapter,
                        place=(index, 0),
                        width=len(targets),
                        targets=targets,
                        prompt_length=len(prompt),
                    )
                )

    def run(self) -> None:
        self.meter.update(self.done, 0)
        self.runner.run(self.scheduler, self._use)

    def _fits(self, index: int, prompt: list[int], target: _Target) -> bool:
        """Whether there is anything to compute; notes the error of a target that is too long."""
        if len(prompt) + len(target.ids) > self.runner.context:
            target.error = (
                f"prompts[{index}] has {len(prompt)} tokens and its completion {len(target.ids)}, "
                f"more than a context of {self.runner.context}"
            )
        return bool(target.ids) and target.error is None

    def _use(self, step: Step[_Forced], hidden: Tensor) -> None:
        rows: list[int] = []
        wanted: list[tuple[_Target, int]] = []
        for one, start, count, bound in zip(
            step.sequences, step.starts, step.counts, step.bounds, strict=False
        ):
            for position in range(max(one.first_needed, start), start + count):
                found = one.wanted(position)
                wanted += found
                rows += [int(bound + position - start)] * len(found)
        self._note(hidden, rows, wanted)
        for index in np.flatnonzero(step.done):
            self._go_on(step.sequences[index])

    def _note(self, hidden: Tensor, rows: list[int], wanted: list[tuple[_Target, int]]) -> None:
        tokens = np.array([token for _, token in wanted], np.int64)
        found: list[Tensor] = []
        for part, logits, which in self.runner.logits(hidden, np.array(rows, np.int64)):
            at = np.arange(len(logits)) if which is None else which
            row, token = upload([at, tokens[part]], logits.device)
            found.append(logits.log_softmax(-1)[row, token])
        logprobs = torch.cat(found).tolist() if found else []  # the step's only wait
        for (target, _), logprob in zip(wanted, logprobs, strict=True):
            target.logprobs.append(logprob)
            self.done += len(target.logprobs) == len(target.ids)
        self.tokens += len(wanted)
        self.meter.update(self.done, self.tokens)

    def _go_on(self, one: _Forced) -> None:
        """After a prompt: reads on in each of its targets of more than one token."""
        targets = [] if one.reading else [t for t in one.targets if len(t.ids) > 1]
        if not targets:
            self.scheduler.finish(one)
            return
        for number, target in enumerate(targets[1:], 1):
            self.scheduler.fork(
                one,
                _Forced(
                    tokens=[*one.tokens, *target.ids[:-1]],
                    adapter=one.adapter,
                    place=(one.place[0], number),
                    targets=[target],
                    prompt_length=one.prompt_length,
                    reading=True,
                ),
            )
        one.targets, one.width, one.reading = targets[:1], 1, True
        self.scheduler.append(one, targets[0].ids[:-1])


def _is_text(entry: object) -> bool:
    if isinstance(entry, str):
        return True
    return isinstance(entry, Rows) and bool(entry) and isinstance(entry[0], int)


def _target(runner: Runner, text: Text, name: str) -> _Target:
    ids = runner.tokenizer.encode_continuation(text) if isinstance(text, str) else text
    return _Target(tuple(check_ids(ids, runner.model.config.vocab_size, name)))
