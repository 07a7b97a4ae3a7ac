"""Texts that do not fit into the model's context are found before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

from selfguide.errors import UserError
from selfguide.method.answering import Answerer
from selfguide.method.expert import Way
from selfguide.method.ground import drawn
from selfguide.method.lessons import training_examples
from selfguide.method.pairs import Pair
from selfguide.method.systems import Answering, Both
from selfguide.prompts import TEMPLATES, Asking
from selfguide.settings import Settings

Named = tuple[str, str]
"""A place, for messages, and the input that stands there."""

_QUOTED = 30  # characters of a text in a message


def check_lengths(answerer: Answerer, settings: Settings) -> None:
    """Every input of the task that will be used must fit, in any template, after the examples.

    Raises:
        UserError: one does not; the message names it and says how long it is.
    """
    task = answerer.task
    # All prompts show the examples: if these are too much, the longest of them is to blame.
    examples = sorted(task.examples, key=lambda e: len(e.input) + len(e.output), reverse=True)
    inputs = [
        *_quoted("examples", [example.input for example in examples]),
        *_quoted("inputs_file", task.inputs[: settings.max_candidates]),
        *_quoted("eval_file", [row.input for row in drawn(task.eval_rows, settings)]),
    ]
    for template in TEMPLATES:
        require_fit(answerer, Asking(template), inputs, f"{task.source}: ")


def require_learnable(
    answerer: Answerer, settings: Settings, pairs: Sequence[tuple[str, Pair]]
) -> None:
    """Raises UserError if a pair, of the place given with it, is too long to be trained on."""
    tokenizer = answerer.llm.tokenizer
    context = answerer.llm.model.config.max_positions
    asking = Asking(settings.template, settings.prompt == "few_shot")
    lessons = training_examples(answerer, settings, asking, [pair for _, pair in pairs])
    prompts = tokenizer.encode_batch([str(lesson.prompt) for lesson in lessons])
    outputs = tokenizer.encode_batch([str(lesson.completion) for lesson in lessons], bos=False)
    for (where, _), prompt, output in zip(pairs, prompts, outputs, strict=True):
        needed = len(prompt) + len(output) + 1  # the end token
        if needed > context:
            raise UserError(
                f"{where}: with its prompt the pair takes {needed} tokens, but the model's context "
                f"is {context}; shorten it or remove the line"
            )


def require_answerable(answerer: Answerer, way: Answering, inputs: Sequence[Named]) -> None:
    """Raises UserError if an input does not fit into what `way` lets the model read."""
    if way.asking is None:
        return
    channel = isinstance(way, Way) and way.decision == "channel"
    if not channel:
        require_fit(answerer, way.asking, inputs)
    if channel or isinstance(way, Both):
        _require_channel_fit(answerer, inputs)


def require_fit(
    answerer: Answerer, asking: Asking, inputs: Sequence[Named], source: str = ""
) -> None:
    """Raises UserError if an input's prompt and answer take more than the model's context."""
    tokenizer, prompts = answerer.llm.tokenizer, answerer.prompts
    encoded = tokenizer.encode_batch([prompts.answer(text, asking) for _, text in inputs])
    for (where, text), ids in zip(inputs, encoded, strict=True):
        _require_room(answerer, len(ids) + answerer.budget(text), f"{source}{where}")


def _require_channel_fit(answerer: Answerer, inputs: Sequence[Named]) -> None:
    task = answerer.task
    records = [answerer.prompts.record(task.examples, label) for label in task.labels]
    longest = max(map(len, answerer.llm.tokenizer.encode_batch(records)))
    for where, text in inputs:
        _require_room(answerer, longest + answerer.count(answerer.prompts.input(text)), where)


def _require_room(answerer: Answerer, needed: int, where: str) -> None:
    context = answerer.llm.model.config.max_positions
    if needed > context:
        raise UserError(
            f"{where}: with its prompt and room for the answer it takes {needed} tokens, but the "
            f"model's context is {context}; shorten it or leave it out"
        )


def _quoted(place: str, texts: Sequence[str]) -> list[Named]:
    """Texts with how they begin, by which they are found: rows may be left out or drawn."""
    cut = [text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..." for text in texts]
    return [(f'{place}, the input "{start}"', text) for start, text in zip(cut, texts, strict=True)]
