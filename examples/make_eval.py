"""Makes the examples' evaluation files from the clauses in phrases/, the same ones each time.

Run: python examples/make_eval.py [FOLDER]   (default: this folder)

Every right answer follows from how its row was put together: nothing was labelled by a model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import yaml

FOLDER = Path(__file__).parent
Row = dict[str, Any]
QUESTION_WORDS = ("can ", "could ", "do ", "does ", "is ", "how ", "when ", "which ", "why ")


def support_topic(phrases: Mapping[str, Any], rng: Random) -> list[Row]:
    """Each problem once; every fourth after praise of another topic."""
    rows = []
    for topic, problems in phrases["problems"].items():
        for number, problem in enumerate(problems):
            text = problem
            if number % 4 == 0:
                other = rng.choice([each for each in phrases["leads"] if each != topic])
                text = f"{rng.choice(phrases['leads'][other])}, but {problem}"
            question = problem.startswith(QUESTION_WORDS)
            text = rng.choice(phrases["openers"]) + text + ("?" if question else ".")
            closer = "" if question else rng.choice(phrases["closers"])
            rows.append({"input": sentence(f"{text} {closer}"), "output": topic})
    return rows


def review_sentiment(phrases: Mapping[str, Any], rng: Random) -> list[Row]:
    """Each clause once: alone, with a weaker one of its mood, or after one of the other mood."""
    moods = ("positive", "negative")
    rows = []
    for subject in phrases["subjects"]:
        for mood, other in (moods, moods[::-1]):
            for number, clause in enumerate(subject[mood]):
                text = clause
                if number % 3 == 1:
                    text = f"{clause}, and {rng.choice(subject[f'mild_{mood}'])}"
                if number % 3 == 2:
                    text = f"{rng.choice(subject[f'mild_{other}'])}, but {clause}"
                text = f"{rng.choice(subject['intro'])} {sentence(text)}."
                rows.append({"input": text.strip(), "output": mood})
    return rows


def claim_check(phrases: Mapping[str, Any], rng: Random) -> list[Row]:
    """Each claim with its three notes, so that only the note decides."""
    return [
        {"input": f"Note: {scenario[label]} Claim: {scenario['claim']}", "output": label}
        for scenario in phrases["scenarios"]
        for label in ("true", "false", "unknown")
    ]


def polite_request(phrases: Mapping[str, Any], rng: Random) -> list[Row]:
    """Each order once, in rude wrapping; the polite request keeps all of the order itself."""
    rows = []
    for ask in phrases["ask"]:
        before, after = rng.choice(phrases["before"]), rng.choice(phrases["after"])
        order = rng.choice(phrases["form"]).format(ask=ask)
        if before.endswith("? "):
            order = sentence(order)
        curt = sentence(f"{before}{order} {after}")
        rows.append({"input": curt, "output": f"Could you please {ask}? Thank you!"})
    return rows


def appointment(phrases: Mapping[str, Any], rng: Random) -> list[Row]:
    """Each frame seven times; people, places and times are drawn evenly."""
    frames = phrases["frames"] * 7
    whos = evenly(phrases["who"], len(frames), rng)
    wheres = evenly(phrases["where"], len(frames), rng)
    days, times = (evenly(phrases[each], len(frames), rng) for each in ("day", "time"))
    rows = []
    for frame, who, where, day, time in zip(frames, whos, wheres, days, times, strict=True):
        slots = {"who": who, "when": f"{day} {time}", "where": where}
        message = sentence(frame.format(**slots))
        # A name that opens the message has a capital there: written so, it is right as well.
        seen = {key: text if text in message else sentence(text) for key, text in slots.items()}
        answers = dict.fromkeys(as_line(each) for each in (slots, seen))
        rows.append({"input": message, "outputs": list(answers)})
    return rows


def order_json(phrases: Mapping[str, Any], rng: Random) -> list[Row]:
    """Each item twice or three times; quantities in words or digits, digits in the answer."""
    items = [(unit, item) for unit, names in phrases["items"].items() for item in names]
    frames = phrases["frames"] * 10
    rows = []
    for frame, (unit, item) in zip(frames, evenly(items, len(frames), rng), strict=True):
        quantity = rng.choice(list(phrases["numbers"]))
        word = rng.choice([str(quantity), phrases["numbers"][quantity]])
        one, several = phrases["units"][unit]
        amount = f"{word} {one if quantity == 1 else several}"
        text = frame.format(item=item, amount=amount, Amount=sentence(amount))
        answer = {"item": item, "quantity": quantity, "unit": one}
        rows.append({"input": text, "output": json.dumps(answer)})
    return rows


def sentence(text: str) -> str:
    """Without white space around it, its first letter a capital."""
    text = text.strip()
    return text[:1].upper() + text[1:]


def as_line(slots: Mapping[str, str]) -> str:
    return " | ".join(f"{key}: {text}" for key, text in slots.items())


def evenly(choices: list[Any], count: int, rng: Random) -> list[Any]:
    """`count` draws in random order, each choice as often as every other, give or take one."""
    drawn: list[Any] = []
    while len(drawn) < count:
        drawn += rng.sample(choices, len(choices))
    return drawn[:count]


MAKERS: Mapping[str, Callable[[Mapping[str, Any], Random], list[Row]]] = {
    maker.__name__: maker
    for maker in (
        support_topic,
        review_sentiment,
        claim_check,
        polite_request,
        appointment,
        order_json,
    )
}


def make(name: str) -> str:
    """The evaluation file of one task, as text."""
    phrases = yaml.safe_load((FOLDER / "phrases" / f"{name}.yaml").read_text(encoding="utf-8"))
    rng = Random(name)
    rows = MAKERS[name](phrases, rng)
    rng.shuffle(rows)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(folder: Path) -> None:
    for name in MAKERS:
        (folder / f"{name}.eval.jsonl").write_text(make(name), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
