"""The command line of a run: every setting and every override of the task is a flag."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from selfguide.errors import UserError, nearest
from selfguide.settings import RECIPES, Settings, Stage
from selfguide.tasks.draft import OVERRIDES
from selfguide.tasks.native import SETTING_KEYS
from selfguide.tasks.reading import expanded, mapping, read_yaml

Resume = Literal["if-possible", "always", "never"]

_TASK_HELP = {
    "name": "of the task and its run folder",
    "instruction": "what to do, in words",
    "labels": "with commas; an empty text for a task without labels",
    "metric": "exact_match, or rouge_l for free text (no labels are looked for)",
    "eval_file": "JSON lines with input and output or outputs, used only to evaluate",
    "inputs_file": "inputs of your own without outputs, a text a line or JSON lines",
    "stop": "what ends an output; \\n is a line end",
}
_GROUPS: Mapping[Stage, str] = {
    "run": "where and with what",
    "synthesis": "inventing, annotating and filtering training pairs",
    "finetune": "training",
    "evaluate": "evaluation",
}


@dataclass(frozen=True)
class Options:
    """What a command line says; `settings` (recipe too) and `overrides` hold what was given."""

    task: Path
    resume: Resume
    preview: int | None
    dry_run: bool
    as_json: bool
    run_file: Path | None
    settings: Mapping[str, str]
    overrides: Mapping[str, Any]


class Parser(argparse.ArgumentParser):
    """Says a mistake like any other: in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists all options)")


def parse_options(arguments: Sequence[str]) -> Options:
    """Reads a command line; both `--round-size` and `--round_size` are understood.

    Raises:
        UserError: it cannot be understood.
    """
    parser = _parser()
    known, unknown = parser.parse_known_args([_dashed(each) for each in arguments])
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        if not unknown[0].startswith("-"):
            raise UserError(f"{unknown[0]}: a run has one task, and {known.task} is given already")
        raise UserError(
            f"unknown option {unknown[0]}{nearest(unknown[0].split('=')[0], flags)}; "
            "--help lists all"
        )
    given = {key: value for key, value in vars(known).items() if value is not None}
    if given.get("labels") == "":
        given["labels"] = []
    return Options(
        task=Path(known.task),
        resume=known.resume,
        preview=known.preview,
        dry_run=known.dry_run,
        as_json=known.json,
        run_file=Path(known.config) if known.config else None,
        settings={key: given[key] for key in SETTING_KEYS if key in given},
        overrides={key: given[key] for key in OVERRIDES if key in given},
    )


def read_run_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings (recipe too) and task overrides of a run file; its file names are relative to it.

    Raises:
        UserError: it cannot be read or has an unknown key.
    """
    settings: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for key, value in mapping(read_yaml(path) or {}, str(path)).items():
        if key in SETTING_KEYS:
            settings[key] = value
        elif key in ("eval_file", "inputs_file") and isinstance(value, str):
            overrides[key] = str(path.parent / expanded(value, f"{path}: {key}"))
        elif key in OVERRIDES:
            overrides[key] = value
        else:
            raise UserError(f"{path}: unknown key {key}{nearest(key, (*SETTING_KEYS, *OVERRIDES))}")
    return settings, overrides


def _dashed(argument: str) -> str:
    """`--round_size=8` as `--round-size=8`; anything else as it is."""
    flag = re.match(r"--[a-z_]+(?==|$)", argument)
    return flag.group().replace("_", "-") + argument[flag.end() :] if flag else argument


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m selfguide.run",
        usage="python -m selfguide.run TASK [options]",
        description="Turns an instruction and a few examples into a task expert.",
        allow_abbrev=False,
    )
    parser.add_argument("task", help="task file: YAML, JSON or JSON lines")
    parser.add_argument("-c", "--config", metavar="FILE", help="run file: YAML with any settings")
    parser.add_argument("--recipe", choices=RECIPES, help="settings to begin with (default)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--preview", type=_count, metavar="N", help="show N candidates and stop")
    instead.add_argument(
        "--dry-run", action="store_true", help="print the plan and an estimate, and stop"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--resume",
        choices=get_args(Resume),
        default="if-possible",
        help="go on where the run folder stands (%(default)s), insist on that, or start anew and "
        "keep the old folder under another name",
    )
    for stage, title in _GROUPS.items():
        group = parser.add_argument_group(title)
        for each in fields(Settings):
            if each.metadata["stage"] == stage:
                _add(group, each)
    group = parser.add_argument_group("the task (over what its file says)")
    for key in OVERRIDES:
        group.add_argument(_flag(key), metavar="TEXT", help=_TASK_HELP[key])
    return parser


def _add(group: argparse._ArgumentGroup, setting: Field[Any]) -> None:
    default, kind = setting.default, get_type_hints(Settings)[setting.name]
    shown = ",".join(default) if isinstance(default, tuple) else default
    note = "" if default is None else f" ({shown})"
    group.add_argument(
        _flag(setting.name),
        metavar=f"{{{','.join(get_args(kind))}}}" if get_origin(kind) is Literal else "X",
        help=(setting.metadata["help"] + note).replace("%", "%%"),
    )


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
