"""Finding a task's labels where the user gave none, from its instruction and examples alone.

When in doubt a task is free text: a wrong label set spoils everything, a missing one costs little.
Evaluation data is never looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from selfguide.metrics.exact import normalise
from selfguide.tasks import wording
from selfguide.tasks.label_words import meanings
from selfguide.tasks.task import Example

_LONGEST = 40  # characters of a label
_MOST_WORDS = 4
_MOST_LABELS = 20
_STEM = 4  # a shorter beginning may be shared by chance


def find_labels(
    instruction: str, examples: Sequence[Example], wrong_outputs: Sequence[str] = ()
) -> dict[str, str]:
    """The labels of a classification task, each with what it means; empty for free text.

    Every example's output must be short and either be named in the instruction or be the output of
    several examples. Labels that no example has are what the instruction offers beside those; they
    are written in the examples' style ("Yes." gives "No.").

    Args:
        instruction: of the task.
        examples: at least one.
        wrong_outputs: outputs given as examples of mistakes; one that the instruction names is a
            label too.
    """
    known = _known(instruction, [example.output for example in examples])
    if not known:
        return {}
    labels = dict(known)
    named = [each for each in wrong_outputs if wording.names(instruction, each)]
    for written in [*wording.beside(instruction, list(known)), *named]:
        if _is_short(written) and not _is_form_of_a_label(written, labels):
            styled = _styled(wording.bare(written), list(known.values()))
            labels.setdefault(normalise(styled), styled)
    if not 2 <= len(labels) <= _MOST_LABELS:
        return {}
    return meanings(instruction, list(labels.values()))


def _known(instruction: str, outputs: Sequence[str]) -> dict[str, str]:
    """The examples' outputs by normal form; empty where one of them cannot be a label."""
    counts = Counter(normalise(output) for output in outputs)
    known: dict[str, str] = {}
    for output in outputs:
        key = normalise(output)
        repeated = counts[key] > 1 and len(counts) > 1
        if not _is_short(output) or not (repeated or wording.names(instruction, output)):
            return {}
        known.setdefault(key, output)
    return known


def _is_short(output: str) -> bool:
    return len(output) <= _LONGEST and len(output.split()) <= _MOST_WORDS and "\n" not in output


def _is_form_of_a_label(written: str, labels: dict[str, str]) -> bool:
    """Whether one of two words begins with the other, as in "weaken" and "weakener"."""
    word = normalise(written)
    for label in labels:
        shorter, longer = sorted((word, label), key=len)
        if word == label:
            return True
        if len(shorter) >= _STEM and longer.startswith(shorter) and longer.isalpha():
            return True
    return False


def _styled(word: str, known: Sequence[str]) -> str:
    """A label that no example shows, in the case and with the full stop that all of them have."""
    bare = [wording.bare(label) for label in known]
    if all(label.isupper() and len(label) > 1 for label in bare):
        word = word.upper()
    elif all(label.islower() for label in bare):
        word = word.lower()
    elif all(re.match(r"[A-Z][^A-Z]+$", label) for label in bare):
        rest = word[1:].lower() if word.isupper() else word[1:]
        word = word[:1].upper() + rest
    return f"{word}." if all(label.endswith(".") for label in known) else word
