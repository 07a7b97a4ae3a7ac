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

    def finish(self) -> None:
        """No token will follow: takes in what was held back as half a character."""
        self._add(self._detokenizer.finish())

    def _add(self, piece: str) -> None:
        if self.found is not None:
            return
        start = max(0, len(self.text) - self._overlap)
        self.text += piece
        hits = [(at, stop) for stop in self._stops if (at := self.text.find(stop, start)) >= 0]
        if hits:
            at, self.found = min(hits)
            self.text = self.text[:at]
