"""Checks and times everything on one GPU, beside its limits and its peers: `bench/README.md`."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from bench.gpu_race.referee import Outcome, run  # noqa: E402
from bench.gpu_race.report import as_dict, as_text, write  # noqa: E402
from bench.gpu_race.sections import SECTIONS  # noqa: E402

NO_GPU = 2  # the exit code


def main() -> None:
    """Runs the sections, rewriting the JSON after each; the tables go to stdout."""
    arguments = _parse()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        print("error: torch sees no GPU; --device cpu --tiny runs the code without one")
        raise SystemExit(NO_GPU)
    tiny, date = arguments.tiny, datetime.date.today().isoformat()
    outcomes: list[Outcome] = []
    for name in _chosen(arguments.only):
        limit = arguments.seconds or SECTIONS[name].seconds
        outcomes.append(run(name, arguments.device, tiny=tiny, limit=limit))
        done = outcomes[-1]
        print(f"{name}: {len(done.results)} results in {done.seconds:.0f} s", file=sys.stderr)
        out = write(as_dict(date, outcomes, tiny=tiny), arguments.out)
    print(f"{as_text(date, outcomes, tiny=tiny)}\n\n{out}")


def _chosen(names: str | None) -> list[str]:
    """Sections by name; the card's ceilings are always measured first."""
    chosen = list(SECTIONS) if names is None else names.split(",")
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        known = ", ".join(SECTIONS)
        raise SystemExit(f"--only: no section {', '.join(unknown)}; there are {known}")
    return list(dict.fromkeys(["card", *chosen]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"sections with commas between: {', '.join(SECTIONS)}")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny shapes: whether it runs, not how fast"
    )
    parser.add_argument(
        "--seconds", type=float, help="the most for each section; default: ten minutes in all"
    )
    parser.add_argument(
        "--out", type=Path, default=_ROOT / "bench" / "results", help="folder, or a .json file"
    )
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu needs --tiny: full sizes are for a GPU")
    return arguments


if __name__ == "__main__":
    main()
