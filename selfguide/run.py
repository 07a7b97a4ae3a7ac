"""The main job: python -m selfguide.run TASK [options]

Reads a task, lets the model write and filter its own training data, finetunes it, measures what was
gained, and leaves everything in a run folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfguide.console import Console
from selfguide.ending import disk_trouble_told, ended, output_trouble_told
from selfguide.errors import UserError
from selfguide.estimate import estimate, show_plan
from selfguide.folder.run_folder import RunFolder
from selfguide.method.answering import Answerer
from selfguide.method.synthesis import preview
from selfguide.options import Options, Resume, parse_options, read_run_file
from selfguide.pipeline import Pipeline, prepare
from selfguide.plan import Plan, Shapes, Step, anew
from selfguide.result import show_candidates, show_result, summary
from selfguide.settings import Settings, build_settings, recipe
from selfguide.tasks import Task
from selfguide.tasks.load import load_task
from selfguide.tasks.reading import expanded

_PROGRAM = ("python", "-m", "selfguide.run")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 2 (a mistake), 3 (too few pairs) or 130 (stopped)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = [*_PROGRAM, *_resuming(given)]
    return ended(lambda console: _work(parse_options(given), command, console), command)


def _resuming(given: Sequence[str]) -> list[str]:
    """The arguments without `--resume never`, which would not go on but start again."""
    kept: list[str] = []
    for argument in given:
        if argument == "never" and kept[-1:] == ["--resume"]:
            kept.pop()
        elif argument != "--resume=never":
            kept.append(argument)
    return kept


def _work(options: Options, command: list[str], console: Console) -> None:
    task, settings, notes = _read(options)

    def prepared() -> Answerer:
        for note in notes:
            console.say(note)
        return prepare(task, settings, console)

    if options.preview is not None:
        found = preview(prepared(), settings, options.preview, console)
        with output_trouble_told():
            show_candidates(found, as_json=options.as_json)
        return
    folder = RunFolder(_out(settings, task))
    with disk_trouble_told(folder.path):
        begins_anew = _begins_anew(folder, task, options.resume)
        if options.dry_run:
            answerer = prepared()
            steps = anew() if begins_anew else Plan(Shapes(answerer, settings), folder).steps()
            if options.resume == "always":
                _insist(steps, folder)
            guess = estimate(answerer, settings, console)
            with output_trouble_told():
                show_plan(folder, steps, guess, as_json=options.as_json)
            return
        _require_free(folder)
        answerer = prepared()  # whatever is wrong with task or model shows before a file changes
        if begins_anew and folder.path.exists():
            console.say(f"{folder.path} is now {folder.set_aside()}")
        with folder.lock(), console.logging(folder.log):
            pipeline = Pipeline(answerer, settings, folder, console)
            if options.resume == "always":
                folder.recover()
                _insist(pipeline.plan.steps(), folder)
            metrics = pipeline.run(command)
            with output_trouble_told():
                _show(metrics, folder, as_json=options.as_json)


def _out(settings: Settings, task: Task) -> Path:
    out = settings.out
    path = expanded(out, "out") if out else Path("runs") / task.name
    if path.exists() and not path.is_dir():
        raise UserError(f"out: {path} is a file, not a folder; choose another --out")
    return path


def _read(options: Options) -> tuple[Task, Settings, tuple[str, ...]]:
    """The task and the settings; the command line wins over run file, task file and recipe."""
    settings, overrides = read_run_file(options.run_file) if options.run_file else ({}, {})
    in_file = dict.fromkeys(overrides.keys() - options.overrides.keys(), str(options.run_file))
    loaded = load_task(options.task, {**overrides, **options.overrides}, in_file)
    task = loaded.task
    layers = {
        str(options.task): loaded.settings,
        str(options.run_file): settings,
        "command line": options.settings,
    }
    return task, _settings(layers, classification=task.is_classification), loaded.notes


def _settings(layers: Mapping[str, Mapping[str, Any]], *, classification: bool) -> Settings:
    """Of what each place says, the later ones win; the recipe stands behind them all."""
    named = [(where, layer["recipe"]) for where, layer in layers.items() if "recipe" in layer]
    where, name = named[-1] if named else ("", "default")
    try:
        preset = recipe(name, classification=classification)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    rest = [{k: v for k, v in layer.items() if k != "recipe"} for layer in layers.values()]
    return build_settings(preset, *rest, where=list(layers))


def _begins_anew(folder: RunFolder, task: Task, resume: Resume) -> bool:
    """Whether nothing that lies in the folder is gone on with: on request, or as another task's.

    Raises:
        UserError: there is nothing to go on with but should be, or files that no run has made.
    """
    if resume == "always" and not folder.path.exists():
        raise UserError(f"{folder.path}: no such run to go on with; leave out --resume always")
    folder.require_own()
    return resume == "never" or (resume == "if-possible" and folder.holds_another(task))


def _require_free(folder: RunFolder) -> None:
    """A second run is refused before it loads a model."""
    if folder.path.exists():
        with folder.lock():
            pass


def _insist(steps: Sequence[Step], folder: RunFolder) -> None:
    if all(step.action == "run" for step in steps):
        raise UserError(
            f"{folder.path}: nothing in it fits this task and these settings, so there is nothing "
            "to go on with; leave out --resume always"
        )


def _show(metrics: dict[str, Any], folder: RunFolder, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary(metrics, folder), ensure_ascii=False))
    else:
        show_result(metrics, folder)


if __name__ == "__main__":
    sys.exit(main())
