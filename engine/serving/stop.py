"""Stop strings: found wherever they fall among tokens."""

from __future__ import annotations

from collections.abc import Sequence

from engine.text.detokenizer import Detokenizer
from engine.text.tokenizer import Tokenizer


class StopStrings:
    """The text of a growing list of ids, which ends before the first stop string.

    Attributes:
        text: what is certain so far, without the stop string.
        found: the stop string that was met, or None.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer, continuation=True)
        self._stops = stops
        self._overlap = max(map(len, stops)) - 1
        self.text = ""
        self.found: str | None = None

    def put(self, token: int) -> None:
        """Adds a token."""
        self._add(self._detokenizer.put(token))
        held = self._detokenizer.pending()  # a run of byte tokens: often a newline, a usual stop
        if held and self._first_stop(self._tail() + held) is not None:
            self.finish()

    def finish(self) -> None:
        """No token will follow: takes in what was held back as half a character."""
        self._add(self._detokenizer.finish())

    def _add(self, piece: str) -> None:
        if self.found is not None:
            return
        start = len(self.text) - len(self._tail())
        self.text += piece
        hit = self._first_stop(self.text[start:])
        if hit is not None:
            at, self.found = hit
            self.text = self.text[: start + at]

    def _tail(self) -> str:
        """The end of the text, in which a stop string may have begun."""
        return self.text[max(0, len(self.text) - self._overlap) :]

    def _first_stop(self, text: str) -> tuple[int, str] | None:
        return min(((at, s) for s in self._stops if (at := text.find(s)) >= 0), default=None)
