"""What a race leaves: a JSON file with everything, and a Markdown table for people."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.race.referee import Entrant, Options, Outcome
from bench.race.sides import OURS

_HEADER = """
| work | side | batch | median s | min-max s | tok/s | load/peak MiB | ratio (pairs) | wanted |
|---|---|---|---|---|---|---|---|---|
""".lstrip()


def machine() -> dict[str, Any]:
    """The machine, and how busy it was: a race counts only if the load was near zero."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def as_json(about: dict[str, Any], options: Options, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything measured; `about` is the race's model, date and machine."""
    settings = asdict(options)
    del settings["models"]  # paths of this machine
    return {
        **about,
        **settings,
        "dtype": "bfloat16",
        "versions": _versions(outcomes),
        "works": [_work(outcome) for outcome in outcomes],
    }


def _versions(outcomes: Sequence[Outcome]) -> dict[str, str]:
    entrants = [entrant for outcome in outcomes for entrant in outcome.entrants]
    return {name: number for e in entrants for name, number in e.versions.items()}


def _work(outcome: Outcome) -> dict[str, Any]:
    ours = outcome.entrants[0]
    return {
        "name": outcome.work.name,
        "description": outcome.work.description,
        "tokens": outcome.tokens,
        "absent": outcome.absent,
        "sides": [_side(entrant, ours, outcome.tokens) for entrant in outcome.entrants],
    }


def _side(entrant: Entrant, ours: Entrant, tokens: int) -> dict[str, Any]:
    median = statistics.median(entrant.seconds)
    fields = asdict(entrant)
    del fields["versions"]
    fields |= {"median": median, "tokens_per_second": tokens / median}
    if entrant.side != OURS:
        pairs = [a / b for a, b in zip(entrant.seconds, ours.seconds, strict=True)]
        fields |= {
            "ratio": median / statistics.median(ours.seconds),
            "pair_ratios": pairs,
            "memory_ratio": ours.peak_mib / entrant.peak_mib,
        }
    return fields


def as_markdown(result: dict[str, Any]) -> str:
    """A table of `as_json`'s result; ratios are the peer's time over ours."""
    about, versions = result["machine"], result["versions"]
    lines = [
        f"# Race on {result['model']}, {result['date']}",
        "",
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}; "
        f"{result['threads']} threads, bfloat16, medians of {result['repeats']}, sides in turn; "
        f"load at the start {about['load_at_start']}.",
        "",
        ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
        + f", Python {about['python']}.",
        "",
        *_caveats(result),
    ]
    rows = [_row(work, side) for work in result["works"] for side in work["sides"]]
    notes = [
        f"{work['name']}: {side} did not start: {reason}"
        for work in result["works"]
        for side, reason in work["absent"].items()
    ]
    works = [f"- {work['name']}: {work['description']}" for work in result["works"]]
    return "\n".join([*lines, _HEADER + "\n".join(rows), "", *works, *notes]) + "\n"


def _caveats(result: dict[str, Any]) -> list[str]:
    lines = []
    if result["fraction"] != 1:
        lines += [f"**Every side ran only {result['fraction']:.0%} of the work.**", ""]
    if result["peer_fraction"] != 1:
        share = f"{result['peer_fraction']:.0%}"
        lines += [f"The peers ran {share} of the work (whole batches), times scaled up.", ""]
    return lines


def _row(work: dict[str, Any], side: dict[str, Any]) -> str:
    seconds, ratio, wanted = side["seconds"], "", ""
    if side["side"] != OURS:
        pairs = side["pair_ratios"]
        ratio = f"**{side['ratio']:.2f}** ({min(pairs):.2f}-{max(pairs):.2f})"
        met = "met" if side["ratio"] >= side["at_least"] else "missed"
        memory = "no higher" if side["memory_ratio"] <= 1 else "higher"
        wanted = f"{side['at_least']:g}: {met}; our memory {memory}"
    cells = [
        work["name"],
        side["side"],
        str(side["batch"] or ""),
        f"{side['median']:.2f}",
        f"{min(seconds):.2f}-{max(seconds):.2f}",
        f"{side['tokens_per_second']:.0f}",
        f"{side['load_peak_mib']:.0f}/{side['peak_mib']:.0f}",
        ratio,
        wanted,
    ]
    return f"| {' | '.join(cells)} |"


def write(result: dict[str, Any], folder: Path, stem: str) -> None:
    """Writes `<stem>.json` and `<stem>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / f"{stem}.md").write_text(as_markdown(result))
