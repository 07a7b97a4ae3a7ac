"""Exact match and macro-F1."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_WRAPPING = "\"'`“”‘’«»„*_()[]{}<> \t\r\n"
_SENTENCE_END = ".,;:!?。，、！？…"


def normalise(text: str) -> str:
    """What two answers are compared by.

    Unicode's compatibility form, case folded, white space runs as one space, without quotes,
    brackets and markup around it and without sentence marks at its end. Signs that carry meaning
    (`-5`, `$5`, `5%`, `C++`) stay, as does a text of nothing but marks.
    """
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = folded.lstrip(_WRAPPING).rstrip(_WRAPPING + _SENTENCE_END)
    return bare or folded


def exact_match(answer: str, outputs: Sequence[str]) -> float:
    """100 if an answer is any of the right outputs, by `normalise`, else 0."""
    given = normalise(answer)
    return 100.0 if any(given == normalise(output) for output in outputs) else 0.0


def gold_label(predicted: str | None, outputs: Sequence[str]) -> str:
    """The right label that a prediction is held to where a row allows several.

    It is the predicted one if that is right, else the first.
    """
    return predicted if predicted is not None and predicted in outputs else outputs[0]


def macro_f1(predicted: Sequence[str | None], gold: Sequence[str], labels: Sequence[str]) -> float:
    """Mean over the labels of F1, 0-100.

    A label that is neither predicted nor right anywhere has no F1 and does not count. None (no
    valid label in the answer) is a miss for the right label.
    """
    scores = []
    for label in labels:
        hits = sum(p == label == g for p, g in zip(predicted, gold, strict=True))
        named = sum(p == label for p in predicted) + sum(g == label for g in gold)
        if named:
            scores.append(2.0 * hits / named)
    return 100.0 * sum(scores) / len(scores) if scores else 0.0


def valid_share(predicted: Sequence[str | None]) -> float:
    """Share of answers that name a label, 0-100."""
    return 100.0 * sum(label is not None for label in predicted) / max(len(predicted), 1)
