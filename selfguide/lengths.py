"""Texts that do not fit into the model's context are found before any work is done."""

from __future__ import annotations

from collections.abc import Iterator

from selfguide.errors import UserError
from selfguide.method.answering import Answerer
from selfguide.method.ground import drawn
from selfguide.prompts import TEMPLATES, Asking
from selfguide.settings import Settings


def check_lengths(answerer: Answerer, settings: Settings) -> None:
    """Every input that will be used must fit: after the examples, in any template, with its answer.

    Raises:
        UserError: one does not; the message names it and says how long it is.
    """
    task, tokenizer = answerer.task, answerer.llm.tokenizer
    context = answerer.llm.model.config.max_positions
    named = list(_inputs(answerer, settings))
    for template in TEMPLATES:
        prompts = [answerer.prompts.answer(text, Asking(template)) for _, text in named]
        for (where, text), ids in zip(named, tokenizer.encode_batch(prompts), strict=True):
            needed = len(ids) + answerer.budget(text)
            if needed > context:
                raise UserError(
                    f"{task.source}: {where}: with instruction, examples and room for its output "
                    f"it takes {needed} tokens, but the model's context is {context}; shorten it, "
                    "leave it out, or use another --model"
                )


def _inputs(answerer: Answerer, settings: Settings) -> Iterator[tuple[str, str]]:
    """Every input of the task that will be used, with the place it came from."""
    task = answerer.task
    for number, example in enumerate(task.examples, start=1):
        yield f"examples, item {number}", example.input
    for number, text in enumerate(task.inputs, start=1):
        yield f"inputs_file, input {number}", text
    for number, row in drawn(list(enumerate(task.eval_rows, start=1)), settings):
        yield f"eval_file, row {number}", row.input
