"""Taking an expert elsewhere: python -m selfguide.export RUN_FOLDER FOLDER [options]

Writes the base model with the expert's update added to its weights, as a folder that transformers
reads, with a README.md that says how to ask it. The adapter alone, for PEFT, is RUN_FOLDER/adapter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from engine.adapters.collection import Adapters
from engine.checkpoint import open_checkpoint
from engine.files import write_atomic
from engine.text.tokenizer import BREAK, Tokenizer
from selfguide.console import Console
from selfguide.ending import disk_trouble_told, ended, output_trouble_told
from selfguide.errors import UserError
from selfguide.folder.run_folder import RunFolder
from selfguide.method.answering import label_ids
from selfguide.method.expert import ADAPTER, Expert
from selfguide.options import Parser
from selfguide.prompts import Prompts
from selfguide.tasks.reading import expanded

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROMPT, _CARD = "prompt.txt", "README.md"
_INPUT = "{input}"  # where the input goes in `_PROMPT`: the last of its kind


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 (a mistake) or 130 (stopped)."""
    return ended(lambda console: _work(_parse(arguments), console))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m selfguide.export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder, such as runs/NAME")
    parser.add_argument("folder", help="where the model goes; it must not exist")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="float32",
        help="of the weights (%(default)s); the others take half the space, and bfloat16 rounds "
        "away small parts of what was learnt",
    )
    parser.add_argument("--model", help="where the base model is, if no longer where it was")
    return parser.parse_args(arguments)


def _work(options: argparse.Namespace, console: Console) -> None:
    run, folder = RunFolder(options.run), expanded(options.folder, "folder")
    run.require_expert()
    expert = Expert.load(run.path)
    if folder.exists():
        raise UserError(f"{folder}: is there already; choose a name that is free")
    checkpoint = open_checkpoint(options.model or expert.model)
    tokenizer = checkpoint.tokenizer()
    prompts = expert.prompts(checkpoint, tokenizer, run.path)
    adapters = Adapters(checkpoint, torch.device("cpu"))
    adapters.load(run.adapter, ADAPTER)
    if expert.quantize is not None:
        console.say(
            f"note: the expert was trained on {expert.quantize} weights and is added to the "
            "original ones; measure it again before you rely on it"
        )
    console.say(f"writing {folder} in {options.dtype}")
    prompt = prompts.answer(_INPUT, expert.way.asking).replace(BREAK, "")
    with disk_trouble_told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
            made = Path(place) / folder.name  # whole or not at all
            adapters.merge(ADAPTER, made, dtype=_DTYPES[options.dtype])
            write_atomic(made / _PROMPT, prompt.encode())
            write_atomic(made / _CARD, _card(expert, prompts, tokenizer, prompt).encode())
            made.rename(folder)
    with output_trouble_told():
        print(folder)


def _card(expert: Expert, prompts: Prompts, tokenizer: Tokenizer, prompt: str) -> str:
    """The README.md of an exported expert."""
    environment = Environment(
        loader=PackageLoader("selfguide", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    ids = label_ids(prompts, tokenizer, expert.way.asking)
    bos = tokenizer.special_tokens.get("bos_token")
    return environment.get_template("export.md.j2").render(
        expert=expert,
        labels=dict(zip(expert.task.labels, ids, strict=True)),
        stop=list(prompts.stop),
        framed=bos is None or not prompt.startswith(bos),
        placeholder=_INPUT,
    )


if __name__ == "__main__":
    sys.exit(main())
