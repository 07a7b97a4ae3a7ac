"""Run folders in the documented formats, as a finished run leaves them, without a model."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from selfguide.settings import Settings

Row = dict[str, Any]

POLES = {"positive": "good", "negative": "bad", "mixed": "both good and bad"}
_THINGS = ["soup", "room", "phone", "novel", "waiter", "battery", "film", "garden", "train", "coat"]
_WORDS = {
    "positive": ["was a delight", "works beautifully", "made us smile", "is worth every penny"],
    "negative": ["was a letdown", "broke after a day", "smelled of dust", "is not worth the money"],
    "mixed": ["was lovely, but far too dear", "looks fine and sounds awful", "had two good hours"],
}
_DROPS = {
    "noise": "says 'Note:', which is not the task's text",
    "shape": "has no comma, which every example has",
    "length": "the input has 412 characters, the examples suggest 18 to 190",
    "duplicate": "like candidate 3",
    "round_trip": "asked for 'positive', annotation says 'mixed'",
}


def classification(folder: Path, candidates: int = 240, evaluated: int = 120) -> Path:
    """A sentiment task with three labels on which the expert wins."""
    rng = random.Random(0)
    examples = [{"input": _review(rng, label), "output": label} for label in POLES]
    task = {
        "name": "reviews",
        "instruction": "Say whether the review is positive, negative or mixed.",
        "labels": POLES,
        "metric": "exact_match",
        "examples": examples,
    }
    ledger = [_candidate(rng, i) for i in range(candidates)]
    rows = [{"input": _review(rng, label), "outputs": [label]} for label in _cycle(evaluated)]
    systems = [
        _system("majority", "Majority label", "floor", 34.2, macro_f1=17.0, prompt_tokens=None),
        _system("zero_shot", "Zero-shot", "untuned", 41.7, valid_share=63.3, prompt_tokens=58),
        _system("few_shot", "Few-shot", "untuned", 52.5, prompt_tokens=214, spread=(37.5, 44.2)),
        _system("few_shot_labels", "Few-shot, label scores", "untuned", 54.2, prompt_tokens=214),
        _system("few_shot_bias_removed", "Few-shot, bias removed", "untuned", 64.2),
        _system("few_shot_channel", "Few-shot, noisy channel", "untuned", 49.2),
        _system("examples_only", "LoRA on the examples alone", "tuned", 57.5, prompt_tokens=58),
        _system("expert", "The expert", "tuned", 79.2, prompt_tokens=58, spread=(76.7, 78.3)),
    ]
    metrics = _metrics("exact_match", systems, evaluated, "few_shot_bias_removed", 15.0)
    predictions = [
        _label_answer(rng, key, i, rows[i]) for key in _ANSWERED for i in range(evaluated)
    ]
    return _write(folder, task, ledger, metrics, predictions, rows)


def free_text(folder: Path) -> Path:
    """A rewriting task on which the expert does not win, measured on synthetic pairs."""
    rng = random.Random(1)
    examples = [_polite(rng) for _ in range(3)]
    task = {
        "name": "polite",
        "instruction": "Rewrite the request so that it is polite.",
        "labels": {},
        "metric": "rouge_l",
        "examples": examples,
    }
    ledger = [_request(rng, i) for i in range(150)]
    rows = [
        {"input": p["input"], "outputs": [p["output"]]} for p in (_polite(rng) for _ in range(40))
    ]
    systems = [
        _system("copy", "Copying the input", "floor", 48.1, prompt_tokens=None),
        _system("zero_shot", "Zero-shot", "untuned", 39.4, prompt_tokens=41),
        _system("few_shot", "Few-shot", "untuned", 71.3, prompt_tokens=160, spread=(66.0, 70.1)),
        _system("examples_only", "LoRA on the examples alone", "tuned", 70.2, prompt_tokens=41),
        _system("expert", "The expert", "tuned", 69.9, prompt_tokens=41, spread=(68.8, 69.5)),
    ]
    metrics = _metrics("rouge_l", systems, len(rows), "few_shot", -1.4)
    metrics["eval"]["source"] = "held_out_synthetic"
    metrics["eval"]["note"] = "no eval_file was given: agreement with the annotator on 40 pairs"
    metrics["recommended"] = None
    metrics["verdict"] = "The expert has not learnt what it was taught: 69.9 ROUGE-L."
    predictions = [
        _text_answer(rng, key, i, row) for key in _ANSWERED for i, row in enumerate(rows)
    ]
    return _write(folder, task, ledger, metrics, predictions, rows)


def too_few(folder: Path) -> Path:
    """A run that ended with six pairs: neither trained nor measured."""
    classification(folder)
    for name in ("metrics.json", "predictions.jsonl", "evaluation.jsonl", "expert.json"):
        (folder / name).unlink()
    rows = read_lines(folder / "candidates.jsonl")
    for row in [row for row in rows if row["kept"]][6:]:
        row.update(kept=False, filter="round_trip", reason=_DROPS["round_trip"])
    write_lines(folder / "candidates.jsonl", rows)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["stages"] = {"synthesis": manifest["stages"]["synthesis"]}
    write_json(folder / "manifest.json", manifest)
    return folder


def hostile(folder: Path) -> Path:
    """A run whose texts try to leave their place: markup, scripts, long words, other directions."""
    classification(folder, candidates=60)
    texts = (
        "</script><script>alert(1)</script>",
        '"><img src=x onerror=alert(2)>',
        "<!-- {{ 7 * 7 }} {% raw %} ]]> &amp; \x00 \u2028",
        "שלום 👩‍🚀 \u202egnp.exe",
        "w" * 3000,
        "https://example.org/" + "a/" * 400,
    )
    for name in ("candidates.jsonl", "evaluation.jsonl"):
        rows = read_lines(folder / name)
        for row, text in zip(rows, texts * 10, strict=False):
            row["input"] = text
        write_lines(folder / name, rows)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["task"] |= {"name": texts[0], "instruction": " ".join(texts)}
    for example, text in zip(manifest["task"]["examples"], texts, strict=False):
        example["input"] = text
    manifest["settings"]["model"] = manifest["model"]["source"] = "/models/" + "m" * 300
    manifest["command"] += [texts[1], texts[4]]
    write_json(folder / "manifest.json", manifest)
    return folder


def read_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, values: Row) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


_ANSWERED = ("zero_shot", "few_shot", "expert")


def _write(
    folder: Path,
    task: Row,
    ledger: list[Row],
    metrics: Row,
    predictions: list[Row],
    rows: list[Row],
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kept = [row for row in ledger if row["kept"]]
    pairs = [{**example, "origin": "example", "id": None} for example in task["examples"]]
    pairs += [
        {"input": row["input"], "output": row["output"], "origin": "synthetic", "id": row["id"]}
        for row in kept
    ]
    write_json(folder / "manifest.json", _manifest(task, len(ledger), len(kept)))
    write_json(folder / "metrics.json", metrics)
    bias = {label: round(0.3 * i - 0.2, 2) for i, label in enumerate(task["labels"])}
    write_json(
        folder / "expert.json",
        {
            "template": "plain",
            "prompt": "zero_shot",
            "decision": "bias_removed",
            "bias": bias,
            "stop": ["\n"],
        },
    )
    write_lines(folder / "candidates.jsonl", ledger)
    write_lines(folder / "dataset.jsonl", pairs)
    write_lines(folder / "predictions.jsonl", predictions)
    write_lines(folder / "evaluation.jsonl", rows)
    return folder


def _manifest(task: Row, tried: int, kept: int) -> Row:
    steps = max(3 * kept // 8, 6)
    rng = random.Random(2)
    losses = [0.2 + 1.6 * math.exp(-4 * i / steps) + 0.25 * rng.random() for i in range(steps)]
    evaluated = [(steps // 3, 0.71), (2 * steps // 3, 0.42), (steps, 0.47)]
    training = {"losses": losses, "eval_losses": evaluated, "best_step": evaluated[1][0]}
    settings = {**vars(Settings()), "filters": list(Settings().filters)}
    stages: dict[str, Row] = {
        "synthesis": {"seconds": 141.2, "peak_mib": 1240.5, "tried": tried, "kept": kept},
        "finetune": {"seconds": 63.9, "peak_mib": 1811.0, "trainings": [training] * 3},
        "evaluate": {"seconds": 88.4, "peak_mib": 1302.0},
    }
    for place, stage in enumerate(stages.values()):
        stage |= {"fingerprint": f"{place}f3a91c07be2"}
    return {
        "selfguide": "0.1.0",
        "task": task,
        "settings": settings,
        "model": {
            "source": "smollm2-135m",
            "fingerprint": "9c1e0a7d55f2",
            "precision": "bfloat16",
            "device": "cpu",
        },
        "machine": {
            "platform": "Linux-6.8-x86_64",
            "cpu": "AMD EPYC, 2 cores",
            "python": "3.11.9",
            "torch": "2.13.0",
        },
        "command": ["python", "-m", "selfguide.run", f"examples/{task['name']}/task.yaml"],
        "stages": stages,
        "dataset_edited": False,
    }


def _system(
    key: str,
    title: str,
    group: str,
    score: float,
    *,
    prompt_tokens: int | None = 214,
    macro_f1: float | None = None,
    valid_share: float | None = None,
    spread: tuple[float, ...] = (),
) -> Row:
    names = ("plain", "titled", "dialogue")
    templates = dict(zip(names, (score, *spread), strict=bool(spread)))
    return {
        "key": key,
        "title": title,
        "group": group,
        "how": f"what {title.lower()} does, in a line of words",
        "score": score,
        "low": score - 8.2,
        "high": score + 7.9,
        "exact_match": score,
        "rouge_l": score,
        "macro_f1": macro_f1,
        "macro_f1_low": macro_f1 and macro_f1 - 6.1,
        "macro_f1_high": macro_f1 and macro_f1 + 5.8,
        "valid_share": valid_share,
        "prompt_tokens": prompt_tokens,
        "seconds": 0.0 if prompt_tokens is None else 11.4,
        "spread": {"templates": templates} if spread else None,
    }


def _metrics(metric: str, systems: list[Row], rows: int, best: str, points: float) -> Row:
    return {
        "metric": metric,
        "eval": {
            "source": "eval_file",
            "rows": rows,
            "note": f"{rows} of 900 rows, drawn by seed 0",
        },
        "systems": systems,
        "best_baseline": best,
        "expert": "expert",
        "recommended": "expert",
        "difference": {
            "points": points,
            "low": points - 7.5,
            "high": points + 8.4,
            "p_value": 0.0004 if points > 5 else 0.62,
        },
        "verdict": (
            "The expert wins: 79.2 exact match against 64.2 of the best baseline (Few-shot, bias "
            f"removed) on {rows} rows: {points:+} points, 95 % interval +7.5 to +23.4, p < 0.001; "
            "a query takes 58 prompt tokens instead of 214."
        ),
    }


def _cycle(count: int) -> list[str]:
    labels = list(POLES)
    return [labels[i % len(labels)] for i in range(count)]


def _review(rng: random.Random, label: str) -> str:
    sentences = rng.randint(1, 3)
    said = (f"The {rng.choice(_THINGS)} {rng.choice(_WORDS[label])}" for _ in range(sentences))
    return ", and ".join(said) + "."


def _scores(rng: random.Random, label: str) -> dict[str, float]:
    raw = {each: rng.gauss(1.8 if each == label else 0.0, 0.8) for each in POLES}
    total = math.log(sum(map(math.exp, raw.values())))
    return {each: value - total for each, value in raw.items()}


def _candidate(rng: random.Random, id: int) -> Row:
    asked = list(POLES)[id % 3]
    fate = rng.choices(["kept", *_DROPS], [30, 6, 8, 14, 9, 33])[0]
    row = _blank(rng, id, _review(rng, asked), asked)
    if fate in ("kept", "round_trip"):
        given = asked if fate == "kept" else rng.choice([each for each in POLES if each != asked])
        row |= {"output": given, "scores": _scores(rng, given), "agreement": 0.8}
    if fate == "length":
        row["input"] *= 6
    return row | _fate(fate)


def _request(rng: random.Random, id: int) -> Row:
    pair = _polite(rng)
    fate = rng.choices(["kept", "copy", "agreement", "duplicate"], [40, 30, 12, 10])[0]
    row = _blank(rng, id, pair["input"], None)
    if fate != "duplicate":
        output = pair["input"] if fate == "copy" else pair["output"]
        row |= {"output": output, "agreement": 0.22 if fate == "agreement" else rng.uniform(0.5, 1)}
    return row | _fate(fate)


def _blank(rng: random.Random, id: int, input: str, asked: str | None) -> Row:
    return {
        "id": id,
        "round": id // 64,
        "source": "record",
        "input": input,
        "asked": asked,
        "seed": rng.getrandbits(31),
        "output": None,
        "scores": None,
        "agreement": None,
    }


def _fate(fate: str) -> Row:
    if fate == "kept":
        return {"kept": True, "filter": None, "reason": None}
    reasons = {**_DROPS, "copy": "the output repeats the input", "agreement": "the votes disagree"}
    return {"kept": False, "filter": fate, "reason": reasons[fate]}


def _polite(rng: random.Random) -> Row:
    verb = rng.choice(["Send", "Bring", "Mend", "Find", "Return", "Show"])
    thing, when = rng.choice(_THINGS), rng.choice(["now", "today", "by noon", "before Friday"])
    return {
        "input": f"{verb} me the {thing} {when}.",
        "output": f"Could you please {verb.lower()} me the {thing} {when}?",
    }


def _label_answer(rng: random.Random, key: str, row: int, asked: Row) -> Row:
    right = {"zero_shot": 0.42, "few_shot": 0.52, "expert": 0.79}[key]
    label = asked["outputs"][0] if rng.random() < right else rng.choice(list(POLES))
    shares = {each: 0.8 if each == label else 0.1 for each in POLES}
    return {"system": key, "row": row, "text": label, "label": label, "probabilities": shares}


def _text_answer(rng: random.Random, key: str, row: int, asked: Row) -> Row:
    right = {"zero_shot": 0.3, "few_shot": 0.7, "expert": 0.7}[key]
    text = asked["outputs"][0] if rng.random() < right else asked["input"]
    return {"system": key, "row": row, "text": text, "label": None, "probabilities": None}
