"""One side's process: loads the model, then runs jobs that come as JSON lines on its stdin.

`python -m bench.race.worker SIDE MODEL THREADS`. Answers are JSON lines on its stdout; whatever
libraries print goes to stderr.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

from bench.race.memory import peak_mib
from bench.race.sides import Side, load


def main() -> None:
    """Serves until stdin ends."""
    name, model, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")

    try:
        start = time.perf_counter()
        side = load(name, model, int(threads))
        seconds = time.perf_counter() - start
    except ModuleNotFoundError as error:
        return answer(missing=str(error))
    answer(seconds=seconds, peak_mib=peak_mib(), versions=side.versions)
    for line in sys.stdin:
        request = json.loads(line)
        answer(**_run(side, request["job"], request["batch"]), peak_mib=peak_mib())


def _run(side: Side, job: dict[str, Any], batch: int | None) -> dict[str, Any]:
    if job["kind"] == "train":
        side.new_adapter(job)
        seconds, losses = _timed(lambda: side.train(job, batch))
        return {"seconds": seconds, "losses": losses}
    seconds, samples = _timed(lambda: side.generate(job, batch))
    wanted = [job["new_tokens"]] * (len(job["prompts"]) * job["samples"])
    if [len(sample) for sample in samples] != wanted:
        raise RuntimeError("not every sample has the number of tokens that was asked for")
    return {"seconds": seconds}


def _timed(run: Any) -> tuple[float, Any]:
    gc.collect()
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
