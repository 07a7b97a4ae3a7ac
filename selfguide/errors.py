"""How a run can end without a report. Messages are one line: what, where, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something given by the user makes no sense, or a file cannot be used (exit code 2)."""


class TooFewPairs(UserError):  # noqa: N818 (an outcome, not a mistake)
    """The filters left too few pairs to train on (exit code 3)."""


class Interrupted(Exception):  # noqa: N818 (an outcome, not a mistake)
    """The user asked to stop; what was finished is on disk (exit code 130)."""


def nearest(word: str, known: Iterable[str]) -> str:
    """How a message about the unknown `word` goes on: " (did you mean ...?)", or nothing."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
