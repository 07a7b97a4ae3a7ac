"""What a run hands back on standard output."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console as Terminal
from rich.markup import escape
from rich.table import Table

from selfguide.folder.run_folder import RunFolder
from selfguide.method.pairs import Candidate

_UNITS = {"exact_match": "exact match", "rouge_l": "ROUGE-L"}
_WIDTH = 1000  # columns where there is no terminal
_BAR = 24  # characters of a score of 100


def standard_output() -> Terminal:
    """Standard output for people; lines stay whole where it is no terminal."""
    return Terminal(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def summary(metrics: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """The result as one JSON object: metrics.json's content, paths, and seconds by stage."""
    stages = folder.manifest().values["stages"]
    return {
        **metrics,
        "folder": str(folder.path),
        "report": str(folder.report),
        "adapter": str(folder.adapter),
        "seconds": {name: record["seconds"] for name, record in stages.items()},
    }


def show_result(metrics: dict[str, Any], folder: RunFolder) -> None:
    """The verdict, the scores, and where to go from here."""
    terminal = standard_output()
    terminal.print()
    terminal.print(f"[bold]{escape(metrics['verdict'])}[/]")
    terminal.print()
    terminal.print(_scores(metrics))
    terminal.print()
    lines = Table.grid(padding=(0, 2))
    lines.add_row("[dim]report[/]", escape(str(folder.report)))
    lines.add_row("[dim]adapter[/]", escape(str(folder.adapter)))
    command = _command(metrics, folder)
    if command:
        verb = "use" if metrics["recommended"] else "try"
        lines.add_row(f"[dim]{verb} it[/]", escape(command))
    terminal.print(lines)


def _command(metrics: dict[str, Any], folder: RunFolder) -> str | None:
    """How to use what did best, or the expert; None where nothing beats asking no model."""
    recommended = metrics["recommended"]
    groups = {system["key"]: system["group"] for system in metrics["systems"]}
    if groups.get(recommended) == "floor":
        return None
    system = "" if recommended in (None, "expert") else f" --system {recommended}"
    return f'python -m selfguide.predict {shlex.quote(str(folder.path))}{system} "..."'


def _scores(metrics: dict[str, Any]) -> Table:
    rows = metrics["eval"]["rows"]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("system")
    table.add_column(_UNITS[metrics["metric"]], justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column(f"of {rows} rows", style="cyan", no_wrap=True)
    for system in metrics["systems"]:
        best = system["key"] == metrics["recommended"]
        title = escape(system["title"])
        table.add_row(
            f"[bold]{title}[/]" if best else title,
            f"{system['score']:.1f}",
            f"{system['low']:.1f} – {system['high']:.1f}",
            "━" * round(system["score"] / 100 * _BAR),
        )
    return table


def show_candidates(candidates: Sequence[Candidate], *, as_json: bool) -> None:
    """Candidates with their annotations and verdicts, as text or as JSON lines."""
    if as_json:
        for each in candidates:
            print(json.dumps(each.row(), ensure_ascii=False))
        return
    terminal = standard_output()
    for each in candidates:
        terminal.print(_verdict(each))
        for name, text in _texts(each):
            terminal.print(f"  [dim]{name:>6}[/]  {escape(text)}")
        terminal.print()


def _verdict(candidate: Candidate) -> str:
    if candidate.filter is None:
        return f"[green]kept[/] [dim]candidate {candidate.id}[/]"
    why = escape(f"{candidate.filter}: {candidate.reason}")
    return f"[red]dropped[/] [dim]candidate {candidate.id}[/] by {why}"


def _texts(candidate: Candidate) -> Iterable[tuple[str, str]]:
    yield "input", candidate.input
    if candidate.asked is not None:
        yield "asked", candidate.asked
    if candidate.output is not None:
        yield "output", candidate.output
