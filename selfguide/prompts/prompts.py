"""The renderer: annotation, training, evaluation and prediction get their prompts here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.errors import TokenizerError
from engine.text.tokenizer import Tokenizer
from selfguide.tasks import Example, Task

Template = Literal["plain", "titled", "dialogue"]
TEMPLATES: tuple[Template, ...] = ("plain", "titled", "dialogue")

# What begins the next question of a prompt, and so ends an output at the latest.
_NEXT: Mapping[Template, str] = {
    "plain": "\nInput:",
    "titled": "\n## Given",
    "dialogue": "\nUser:",
}

_FOLDER = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Asking:
    """How a question is put to the model.

    Args:
        template: the prompt's wording.
        shots: with the task's examples before the question (few-shot), or without (zero-shot).
        adapter: name of the adapter that answers; None for the bare model.
    """

    template: Template = "plain"
    shots: bool = True
    adapter: str | None = None


class Prompts:
    """Prompts of one task, as text for the engine.

    A prompt is followed by `completion`, or, where it asks for an input, by `input`; `stop` lists
    the strings that end an output. What looks like a special token in the task's texts is text.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer) -> None:
        self.task = task
        self._tokenizer = tokenizer
        self._escape = tokenizer.escape
        self._environment = Environment(
            loader=FileSystemLoader(_FOLDER),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            autoescape=False,
            finalize=lambda value: tokenizer.escape(str(value)),
        )

    def answer(self, input: str, asking: Asking, examples: Sequence[Example] | None = None) -> str:
        """The prompt that asks for the output of `input`; `examples` replace the task's own."""
        chosen = self.task.examples if examples is None else tuple(examples)
        shown = self._ended(chosen) if asking.shots else []
        if asking.template == "dialogue":
            return self._dialogue(input, shown)
        return self._render(
            asking.template, instruction=self.task.instruction, examples=shown, input=input
        )

    def completion(self, output: str, asking: Asking) -> str:
        """`output` as it follows a prompt of that template, and as examples show it."""
        starts_line = asking.template == "titled"
        starts_turn = asking.template == "dialogue" and self._has_chat
        text = self._escape(self._finished(output))
        return text if starts_line or starts_turn else f" {text}"

    def boundary(self, asking: Asking) -> str | None:
        """What stands between an example's output and the next input; None: an end token."""
        if asking.template == "dialogue" and self._has_chat:
            return None
        return f"\n{_NEXT[asking.template]}"

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends an output: the task's own stops, else its line or paragraph; the next input."""
        return tuple(dict.fromkeys((*(self.task.stop or self._usual_stop), *_NEXT.values())))

    @property
    def _usual_stop(self) -> tuple[str, ...]:
        outputs = [example.output for example in self.task.examples]
        if any("\n\n" in output for output in outputs):
            return ()
        return ("\n\n",) if any("\n" in output for output in outputs) else ("\n",)

    def _ended(self, examples: Sequence[Example]) -> list[Example]:
        return [Example(each.input, self._finished(each.output)) for each in examples]

    def _finished(self, output: str) -> str:
        """An output and the task's first stop, unless what follows it brings that along."""
        first = self.stop[0]
        if not first.strip() or first in _NEXT.values() or output.endswith(first):
            return output
        return output + first

    def record(self, records: Sequence[Example], asked: str | None, start: str = "") -> str:
        """The prompt whose continuation is a new input.

        Args:
            records: shown before, those with the label that is asked for last.
            asked: the label or output that the new input shall lead to; None for any.
            start: how every input of this task begins.
        """
        labelled = asked is not None and self.task.is_classification
        if labelled:
            records = sorted(records, key=lambda record: record.output == asked)
        words = [Example(r.input, self._described(r.output)) for r in records]
        text = self._render(
            "record",
            instruction=self.task.instruction,
            records=words,
            labelled=labelled,
            asked=self._described(asked) if asked else None,
        )
        return f"{text}{self.input(start)}" if start else text

    def input(self, text: str) -> str:
        """An input, or its start, as it follows `record` and as records show it."""
        return f" {self._escape(text)}"

    def output(self, records: Sequence[Example]) -> str:
        """The prompt whose continuation is a new output, for which `record` then asks an input."""
        shown = self._ended(records)
        return self._render("output", instruction=self.task.instruction, records=shown)

    def meta(self, inputs: Sequence[str], asked: str | None) -> str:
        """The paper's request for a new input, as a user's turn in the model's own chat format."""
        text = self._render("meta", instruction=self.task.instruction, inputs=inputs, asked=asked)
        return self._chat([{"role": "user", "content": text}]) or f"{text}\n\nInput:"

    def words(self, label: str) -> str:
        """What a label means, in words; an output that is not a label stays as it is."""
        return self.task.labels.get(label, label)

    def _described(self, label: str) -> str:
        """A label and what it means; an output that is not a label stays as it is."""
        words = self.words(label)
        return label if words == label else f"{label}: {words}"

    @property
    def fingerprint(self) -> str:
        """A hash of all templates: 64 hex digits."""
        digest = hashlib.sha256()
        for path in sorted(_FOLDER.glob("*.j2")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()

    def _dialogue(self, input: str, examples: Sequence[Example]) -> str:
        turns: list[dict[str, str]] = []
        for example in examples:
            turns.append({"role": "user", "content": example.input})
            turns.append({"role": "assistant", "content": example.output})
        turns.append({"role": "user", "content": input})
        turns[0]["content"] = f"{self.task.instruction}\n\n{turns[0]['content']}"
        return self._chat(turns) or self._render("dialogue", turns=turns)

    @property
    def _has_chat(self) -> bool:
        return self._chat([{"role": "user", "content": "x"}]) is not None

    def _chat(self, turns: list[dict[str, str]]) -> str | None:
        """The conversation in the model's own format; None if it has none."""
        try:
            return self._tokenizer.render_chat(
                [turn | {"content": self._escape(turn["content"])} for turn in turns]
            )
        except TokenizerError:
            return None

    def _render(self, name: str, **values: object) -> str:
        return self._environment.get_template(f"{name}.j2").render(**values)
