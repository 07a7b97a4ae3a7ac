"""Writes report.html: everything a run made, in one file that a browser reads without a network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from engine.files import write_atomic
from selfguide.report.answers import before_after
from selfguide.report.figures import funnel, label_counts, length_histogram, loss_curve
from selfguide.report.rows import candidate_table
from selfguide.report.run_files import Run
from selfguide.report.summary import notices, verdict

_UNPRINTABLE = {code: "\ufffd" for code in range(32) if chr(code) not in "\t\n"}
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run folder, from the files that are in it.

    A run that ended early gets a report of what there is. All text from the run is escaped.

    Raises:
        UserError: the folder is not a run's, or a file in it cannot be read.
    """
    run = Run.read(folder)
    page = _environment().get_template("report.html.j2").render(_view(run)).translate(_UNPRINTABLE)
    path = folder / "report.html"
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def _view(run: Run) -> dict[str, Any]:
    """All that the templates ask for."""
    return {
        "run": run,
        "task": run.task,
        "metrics": run.metrics,
        "verdict": verdict(run),
        "notices": notices(run),
        "funnel": funnel(run),
        "label_counts": label_counts(run),
        "input_lengths": length_histogram(run, "input"),
        "output_lengths": None if run.labels else length_histogram(run, "output"),
        "curve": loss_curve(run.stages.get("finetune")),
        "table": candidate_table(run),
        "answers": before_after(run),
        "command": shlex.join(run.manifest["command"]),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": _duration, "memory": _memory, "signed": _signed}
    return environment


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _memory(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")
