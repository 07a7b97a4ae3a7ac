"""The main job on Natural Instructions tasks, beside what 200 right answers would teach.

    python bench/natural_instructions.py FOLDER --model smollm2-135m

FOLDER holds task files (github.com/allenai/natural-instructions, `tasks/*.json`). Each is run as a
user would run it, going on with few pairs (`--at-least 0`); the ceiling is LoRA, one training with
the expert's settings, on 200 instances that are not evaluated. `docs/RESULTS.md` is written anew
after each task. A run that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from bench.results_table import write_results  # noqa: E402
from engine import EngineError  # noqa: E402
from engine.files import write_json  # noqa: E402
from selfguide.console import Console  # noqa: E402
from selfguide.errors import UserError  # noqa: E402
from selfguide.folder.run_folder import RunFolder  # noqa: E402
from selfguide.method.answering import Answerer  # noqa: E402
from selfguide.method.expert import Way  # noqa: E402
from selfguide.method.finetune import choose_decision  # noqa: E402
from selfguide.method.ground import drawn  # noqa: E402
from selfguide.method.lessons import Lesson, lesson_fingerprint, teach  # noqa: E402
from selfguide.method.pairs import Pair  # noqa: E402
from selfguide.metrics.exact import exact_match  # noqa: E402
from selfguide.metrics.rouge import rouge_l  # noqa: E402
from selfguide.pipeline import Pipeline, prepare  # noqa: E402
from selfguide.prompts import Asking  # noqa: E402
from selfguide.settings import Settings, build_settings, recipe  # noqa: E402
from selfguide.tasks import EvalRow, Task  # noqa: E402
from selfguide.tasks.load import load_task  # noqa: E402

_GOLD = 200  # instances that the ceiling is trained on


def main() -> None:
    """Runs the tasks one after the other; the table goes to stdout at the end."""
    options = _parse()
    for path in sorted(options.folder.glob("*.json")):
        if options.only and not any(name in path.stem for name in options.only.split(",")):
            continue
        key = f"{Path(options.model).stem} {path.stem}"
        try:
            result = _run(path, options)
        except (UserError, EngineError) as error:
            raise SystemExit(f"error: {error}") from None
        results = {key: result}  # another process may have added its own meanwhile
        if options.results.exists():
            results = json.loads(options.results.read_text(encoding="utf-8")) | results
        write_json(options.results, dict(sorted(results.items())))
        write_results(options.results, options.page)
    print(options.page.read_text(encoding="utf-8"))


def _run(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    console = Console()
    task = load_task(path).task
    settings = build_settings(
        recipe(options.recipe, classification=task.is_classification),
        {
            "model": options.model,
            "limit": options.limit,
            "seed": options.seed,
            "at_least": 0,
            "pairs": options.pairs,
        },
        where=("command line",),
    )
    folder = RunFolder(options.out / Path(options.model).stem / path.stem)
    with console.listening(), folder.lock(), console.logging(folder.log):
        answerer = prepare(task, settings, console)
        metrics = Pipeline(answerer, settings, folder, console).run(sys.argv)
        ceiling = _ceiling(answerer, settings, folder, console)
    stages = folder.manifest().values["stages"]
    return {
        "model": Path(options.model).stem,
        "task": path.stem,
        "kind": "classification" if task.is_classification else "text",
        "rows": metrics["eval"]["rows"],
        "seed": settings.seed,
        "recipe": options.recipe,
        "expert_of": f"{settings.trainings}{' + examples' if settings.examples_share else ''}",
        "precision": answerer.llm.model.precision,
        "pairs": stages["synthesis"].get("kept"),
        "candidates": stages["synthesis"].get("candidates"),
        "seconds": {name: round(stage["seconds"]) for name, stage in stages.items()},
        "peak_mib": round(max(stage["peak_mib"] for stage in stages.values())),
        "scores": {each["key"]: each["score"] for each in metrics["systems"]} | {"gold": ceiling},
        "expert_interval": _interval(metrics),
        "verdict": metrics["verdict"],
    }


def _interval(metrics: Mapping[str, Any]) -> list[float]:
    expert = next(each for each in metrics["systems"] if each["key"] == "expert")
    return [expert["low"], expert["high"]]


def _ceiling(
    answerer: Answerer, settings: Settings, folder: RunFolder, console: Console
) -> float | None:
    """The score of LoRA on right answers, asked and decided like the expert, its bias left in.

    None if all instances are evaluated.
    """
    task = answerer.task
    rows = drawn(task.eval_rows, settings)
    taught = _others(task, rows, settings.seed)
    if not taught:
        return None
    pairs = [Pair(row.input, row.outputs[0], "synthetic") for row in taught]
    asking = Asking(settings.template, settings.prompt == "few_shot", "gold")
    lesson = Lesson("gold", asking, pairs, [], settings.epochs)
    kept = folder.path / "gold.json"
    about = {"lesson": lesson_fingerprint(answerer, settings, lesson), "rows": len(rows)}
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if about.items() <= known.items():
        return float(known["score"])
    teach(answerer, settings, lesson, console)
    decision = "greedy" if choose_decision(settings, task) == "greedy" else "direct"
    watch = console.watch("answering after right answers")
    answers = Way(asking, decision).answer(answerer, [row.input for row in rows], watch)
    scores = [
        (rouge_l if task.metric == "rouge_l" else exact_match)(answer.text, row.outputs)
        for answer, row in zip(answers, rows, strict=True)
    ]
    score = sum(scores) / len(scores)
    write_json(kept, about | {"score": score})
    return score


def _others(task: Task, rows: list[EvalRow], seed: int) -> list[EvalRow]:
    """Instances that are neither evaluated nor like one that is, at most `_GOLD`."""
    evaluated = {row.input for row in rows}
    left = [row for row in task.eval_rows if row.input not in evaluated]
    return random.Random(seed).sample(left, min(_GOLD, len(left)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds task files (*.json)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--only", help="parts of task names, with commas between")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--limit", type=int, default=200, help="evaluation instances of a task")
    parser.add_argument("--pairs", type=int, default=Settings().pairs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/natural-instructions"))
    parser.add_argument(
        "--results", type=Path, default=_ROOT / "bench/results/natural_instructions.json"
    )
    parser.add_argument("--page", type=Path, default=_ROOT / "docs/RESULTS.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
