"""The checks that turn a draft into a task."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import get_args

from selfguide.errors import UserError, nearest
from selfguide.metrics.exact import normalise
from selfguide.tasks.draft import Draft
from selfguide.tasks.rows import MAX_EXAMPLES, Row
from selfguide.tasks.task import EvalRow, Example, Metric, Task

METRICS: tuple[Metric, ...] = get_args(Metric)
_MIN_EXAMPLES = 2
_LONGEST_NAME = 80  # characters


def checked(draft: Draft) -> Task:
    """The task of a draft; what is left out of it is added to the draft's notes.

    Outputs that are a label but for case and punctuation become the label as it is written.

    Raises:
        UserError: the draft is no sound task.
    """
    labels = dict(draft.labels or {})
    written = _by_normal_form(labels, draft)
    examples = tuple(_examples(draft, written))
    _require_whole_outputs(draft, examples)
    inputs = {example.input for example in examples}
    rows = tuple(_eval_rows(draft, written, inputs))
    return Task(
        name=_name(draft),
        instruction=draft.instruction,
        examples=examples,
        labels=labels,
        metric=_metric(draft),
        eval_rows=rows,
        inputs=tuple(_inputs(draft, inputs | {row.input for row in rows})),
        stop=draft.stop,
        source=str(draft.source),
    )


def _name(draft: Draft) -> str:
    given = draft.name or draft.source.stem
    safe = re.sub(r"[^\w.-]+", "-", given).strip(".-")[:_LONGEST_NAME] or "task"
    if draft.name not in (None, safe):
        raise UserError(
            f"{draft.place('name')}: {given!r:.100} cannot name a folder (up to {_LONGEST_NAME} "
            f'letters, digits, "-", "_" and "." can); write {safe}'
        )
    return safe


def _metric(draft: Draft) -> Metric:
    if draft.metric is None:
        return "exact_match" if draft.labels else "rouge_l"
    for known in METRICS:
        if draft.metric == known:
            return _suited(known, draft)
    hint = nearest(draft.metric, METRICS)
    raise UserError(
        f"{draft.place('metric')}: {draft.metric} is none of {', '.join(METRICS)}{hint}"
    )


def _suited(metric: Metric, draft: Draft) -> Metric:
    """The metric, where it is one for labels or there are none."""
    if metric == "rouge_l" and draft.labels:
        raise UserError(
            f"{draft.place('metric')}: rouge_l is for free text, and the task has labels; leave "
            "out metric, or give labels as an empty list"
        )
    return metric


def _by_normal_form(labels: Iterable[str], draft: Draft) -> dict[str, str]:
    """Labels as written, by what answers are compared by."""
    written: dict[str, str] = {}
    for label in labels:
        same = written.setdefault(normalise(label), label)
        if same != label:
            raise UserError(
                f"{draft.place('labels')}: {same} and {label} differ only in case or punctuation"
            )
    if len(written) == 1:
        raise UserError(f"{draft.place('labels')}: one label leaves nothing to choose; give two")
    return written


def _examples(draft: Draft, written: dict[str, str]) -> list[Example]:
    count = len(draft.examples)
    if not _MIN_EXAMPLES <= count <= MAX_EXAMPLES:
        wanted = f"{_MIN_EXAMPLES} to {MAX_EXAMPLES}"
        raise UserError(f"{draft.source}: examples: {count} of them; give {wanted}")
    seen: dict[str, int] = {}
    examples = []
    for number, example in enumerate(draft.examples, start=1):
        first = seen.setdefault(example.input, number)
        if first != number:
            raise UserError(
                f"{draft.source}: examples: item {number} has the same input as item {first}"
            )
        output = written.get(normalise(example.output)) if written else example.output
        if output is None:
            raise UserError(
                f"{draft.source}: examples, item {number}: output {example.output!r} is none of "
                f"the labels {_listed(written.values())}"
            )
        examples.append(Example(example.input, output))
    return examples


def _require_whole_outputs(draft: Draft, examples: Sequence[Example]) -> None:
    """No example's output may go on behind a stop: every answer would end there."""
    for number, example in enumerate(examples, start=1):
        for stop in draft.stop:
            if stop in example.output.removesuffix(stop):
                raise UserError(
                    f"{draft.place('stop')}: {stop!r} stands within the output of examples, item "
                    f"{number} ({example.output!r:.60}), and would cut such answers; choose another"
                )


def _eval_rows(draft: Draft, written: dict[str, str], known: set[str]) -> list[EvalRow]:
    fresh = [row for row in draft.eval_rows if row.input not in known]
    dropped = len(draft.eval_rows) - len(fresh)
    if dropped:
        draft.notes.append(
            f"{draft.eval_source}: {dropped} rows have an example's input and are left out"
        )
        if not fresh and "eval_file" in draft.places:
            raise UserError(
                f"{draft.place('eval_file')}: every row has an example's input; give other rows, "
                "or leave it out"
            )
    rows = [EvalRow(row.input, _answers(row, written)) for row in fresh]
    if written:
        _look_for_strangers(draft, fresh, written)
    return rows


def _answers(row: Row, written: dict[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(written.get(normalise(each), each) for each in row.outputs))


def _look_for_strangers(draft: Draft, rows: Sequence[Row], written: dict[str, str]) -> None:
    """Evaluation rows none of whose outputs is a label."""
    strange = [r for r in rows if not any(normalise(each) in written for each in r.outputs)]
    if not strange:
        return
    first = f"{strange[0].where}: output {strange[0].outputs[0]!r} is none of the labels"
    if draft.strict:
        raise UserError(f"{first} {_listed(written.values())}")
    draft.notes.append(f"{first}; {len(strange)} of {len(rows)} rows cannot be answered rightly")


def _listed(labels: Iterable[str]) -> str:
    """Labels with commas between; one that has a comma itself in quotes."""
    return ", ".join(repr(each) if "," in each else each for each in labels)


def _inputs(draft: Draft, known: set[str]) -> list[str]:
    given = list(dict.fromkeys(draft.inputs))
    if len(given) < len(draft.inputs):
        repeats = len(draft.inputs) - len(given)
        draft.notes.append(f"inputs_file: {repeats} inputs repeat earlier ones and are left out")
    fresh = [each for each in given if each not in known]
    if len(fresh) < len(given):
        draft.notes.append(
            f"inputs_file: {len(given) - len(fresh)} inputs are among the examples or "
            "evaluation rows and are left out"
        )
    return fresh
