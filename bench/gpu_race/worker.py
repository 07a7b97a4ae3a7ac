"""One section's process: prints each result as a JSON line on its stdout.

`python -m bench.gpu_race.worker SECTION DEVICE full|tiny`. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator

import torch

from bench.gpu_race.results import Note, Result, as_json
from bench.gpu_race.sections import SECTIONS, Section
from bench.gpu_race.workbench import Job, Skipped, Workbench, reason


def main() -> None:
    """Runs the section to its end, unless it is ended before."""
    name, device, size = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    bench = Workbench(torch.device(device), size == "tiny")
    for result in results(SECTIONS[name], name, bench):
        answers.write(json.dumps(as_json(result)) + "\n")


def results(section: Section, name: str, bench: Workbench) -> Iterator[Result]:
    """What the section's jobs give; a job that fails gives a note, and the rest goes on."""
    torch.manual_seed(0)
    try:
        for job in section.jobs(bench):
            yield from _results(job)
            bench.recover()
    except Exception as error:  # no jobs at all, or a GPU that answers no more
        yield Note(name, reason(error), True)


def _results(job: Job) -> Iterator[Result]:
    name, run = job
    try:
        found = run()
        yield from found if isinstance(found, Iterable) else [found]
    except Skipped as skipped:
        yield Note(name, str(skipped), False)
    except Exception as error:
        yield Note(name, reason(error), True)


if __name__ == "__main__":
    main()
