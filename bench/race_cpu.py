"""Races the engine against transformers, peft and llama.cpp on the CPU: `bench/README.md`."""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_ROOT))

from bench.race.client import RaceError  # noqa: E402
from bench.race.referee import Options, Outcome, race  # noqa: E402
from bench.race.report import as_json, as_markdown, machine, write  # noqa: E402
from bench.race.works import WORKS, Work  # noqa: E402
from engine.checkpoint import open_checkpoint  # noqa: E402
from engine.checkpoint.builtin import BUILTIN, builtin_gguf  # noqa: E402
from engine.errors import EngineError  # noqa: E402


def main() -> None:
    """Races, writing the results after each work; the table goes to stdout."""
    arguments = _parse()
    try:
        with ExitStack() as stack:
            print(as_markdown(_race(arguments, stack)))
    except (EngineError, RaceError) as error:
        raise SystemExit(f"error: {error}") from None


def _race(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, object]:
    works, about = _chosen(arguments.works), machine()
    checkpoint = open_checkpoint(arguments.model)
    models = dict.fromkeys(("ours", "transformers"), str(checkpoint.path.resolve()))
    if any(rival.side == "llama.cpp" for work in works for rival in work.rivals):
        models |= _gguf(arguments, stack)
    tokenizer = checkpoint.tokenizer()
    fractions = arguments.fraction, arguments.peer_fraction
    options = Options(models, arguments.threads, arguments.repeats, *fractions, arguments.batch)
    date = datetime.date.today().isoformat()
    about = {"model": Path(arguments.model).name, "date": date, "machine": about}
    outcomes: list[Outcome] = []
    for work in works:
        outcomes.append(race(work, options, lambda text: tokenizer.encode(text, bos=False)))
        result = as_json(about, options, outcomes)
        write(result, arguments.out, f"race_cpu-{date}")
    return result


def _gguf(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, str]:
    """llama.cpp's model: the file given, or the one that the built-in model was made from."""
    if arguments.gguf is not None:
        return {"llama.cpp": str(arguments.gguf.resolve())}
    if arguments.model not in BUILTIN:
        return {}
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return {"llama.cpp": str(builtin_gguf(arguments.model, Path(folder)))}


def _chosen(names: str | None) -> list[Work]:
    by_name = {work.name: work for work in WORKS}
    chosen = list(by_name) if names is None else names.split(",")
    unknown = [name for name in chosen if name not in by_name]
    if unknown:
        raise SystemExit(f"--works: no work {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in chosen]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", help="names with commas between; default: all")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or HF folder")
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")
    parser.add_argument("--repeats", type=_count, default=5, help="counted runs of each side")
    parser.add_argument("--threads", type=_count, default=2)
    parser.add_argument(
        "--fraction", type=_share, default=1.0, help="share of requests or examples to run"
    )
    parser.add_argument(
        "--peer-fraction",
        type=_share,
        default=1.0,
        help="share of those that the peers run; their times are scaled up",
    )
    parser.add_argument(
        "--batch", type=_count, help="the peers' batch size, where an earlier search found it"
    )
    parser.add_argument("--out", type=Path, default=_ROOT / "bench" / "results", help="folder")
    return parser.parse_args()


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def _share(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError("must be above 0 and at most 1")
    return float(text)


if __name__ == "__main__":
    main()
