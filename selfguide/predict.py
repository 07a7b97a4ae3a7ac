"""Using an expert: python -m selfguide.predict RUN_FOLDER TEXT [TEXT ...] [options]

A TEXT may also be `-` (standard input, a text a line), a .txt file of a text a line, or a .jsonl
file of objects with `input`. Answers go to standard output, one a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import engine
from selfguide.console import Console
from selfguide.ending import ended, output_trouble_told
from selfguide.errors import UserError
from selfguide.folder.run_folder import RunFolder
from selfguide.lengths import Named, require_answerable
from selfguide.method.expert import Answer, Expert
from selfguide.method.remembering import Remembering
from selfguide.method.systems import Answering
from selfguide.observer import stoppable
from selfguide.options import Parser
from selfguide.recall import measured, recall
from selfguide.tasks.reading import expanded, read_inputs, read_text, text

_FILES = (".jsonl", ".json", ".txt")  # that hold inputs
_AT_ONCE = 256  # inputs, after whose answers these are printed


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 (a mistake) or 130 (stopped)."""
    return ended(lambda console: _work(_parse(arguments), console))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m selfguide.predict", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="run folder, such as runs/NAME")
    parser.add_argument(
        "texts",
        nargs="+",
        metavar="text",
        help="an input, - (standard input, a text a line), a .txt file of a text a line, or a "
        ".jsonl file of objects with input",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON lines, with the labels' probabilities (a terminal shows them without it)",
    )
    parser.add_argument(
        "--system",
        default="expert",
        metavar="KEY",
        help="who answers: a key of metrics.json, or recommended; default: expert",
    )
    parser.add_argument("--model", help="where the base model is, if no longer where it was")
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    return parser.parse_args(arguments)


def _work(options: argparse.Namespace, console: Console) -> None:
    folder = RunFolder(options.folder)
    folder.require_expert()
    expert = Expert.load(folder.path)
    given = list(_inputs(options.texts))
    inputs = [each for each in given if each[1]]
    source = options.model or expert.model
    llm = engine.load(source, device=options.device, quantize=expert.quantize)
    answerer = expert.attach(llm, folder.path)
    way = _way(options.system, folder, expert, llm, console)
    require_answerable(answerer, way, inputs)
    answerer = Remembering(answerer.llm, answerer.task, answerer.prompts)  # a bias, for one
    for first in range(0, len(given), _AT_ONCE):
        asked = [each for _, each in given[first : first + _AT_ONCE]]
        watch = stoppable(console, _title(first, len(given)))
        answers = iter(way.answer(answerer, [each for each in asked if each], watch))
        with output_trouble_told():
            for each in asked:
                answer = next(answers) if each else Answer("")
                print(_line(each, answer, as_json=options.json, alone=len(given) == 1))


def _title(first: int, count: int) -> str:
    """Of the progress of the answers from `first` on."""
    if count <= _AT_ONCE:
        return "answering"
    return f"answering {first + 1} to {min(first + _AT_ONCE, count)} of {count}"


def _way(
    system: str, folder: RunFolder, expert: Expert, llm: engine.LLM, console: Console
) -> Answering:
    recommended = measured(folder).get("recommended")
    if system == "expert":
        if recommended not in (None, "expert"):
            console.say(f"note: this run's report recommends --system {recommended}")
        return expert.way
    if system != "recommended":
        return recall(system, folder, expert, llm)
    if recommended is None:
        raise UserError(
            f"{folder.path}: recommends nothing, as its evaluation is not finished or could not "
            "judge the expert; leave out --system recommended"
        )
    return recall(recommended, folder, expert, llm)


def _inputs(texts: Sequence[str]) -> Iterator[Named]:
    """Every input, with where it came from; "" for an empty line of text.

    Raises:
        UserError: another one is empty, or a file cannot be read.
    """
    for number, given in enumerate(texts, start=1):
        if given == "-":
            yield from _lines(_standard_input(), "standard input")
        elif _is_file(given):
            path = expanded(given, f"text {number}")
            lines = path.suffix.lower() == ".txt"
            yield from _lines(read_text(path), given) if lines else read_inputs(path)
        else:
            yield f"text {number}", text(given, f"text {number}")


def _standard_input() -> str:
    if sys.stdin is None:
        raise UserError("standard input: it is closed; give the text as an argument")
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("standard input: not UTF-8; send text in UTF-8") from None


def _lines(given: str, source: str) -> Iterator[Named]:
    if not given.strip():
        raise UserError(f"{source}: no text in it; give a text a line")
    for number, line in enumerate(given.removesuffix("\n").split("\n"), start=1):
        where = f"{source}, line {number}"
        yield where, text(line, where) if line.strip() else ""


def _is_file(given: str) -> bool:
    """Whether a text is meant as a file's name; a sentence may end like one."""
    if not given.lower().endswith(_FILES):
        return False
    return " " not in given or expanded(given, "text").is_file()


def _line(given: str, answer: Answer, *, as_json: bool, alone: bool) -> str:
    """An answer as it is printed; a text of several lines takes one line, unless it is alone."""
    if as_json:
        values = {"label": answer.label, "probabilities": answer.probabilities}
        return json.dumps({"input": given, "output": answer.text, **values}, ensure_ascii=False)
    shown = answer.text if alone else answer.text.replace("\n", "\\n")
    if answer.probabilities is None or not sys.stdout.isatty():
        return shown
    ordered = sorted(answer.probabilities.items(), key=lambda each: -each[1])
    shares = ", ".join(f"{label} {100 * share:.0f} %" for label, share in ordered)
    return f"{shown}  ({shares})"


if __name__ == "__main__":
    sys.exit(main())
