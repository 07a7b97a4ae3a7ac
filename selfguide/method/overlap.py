"""How much of its words an output shares with its input, as the examples show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfguide.metrics.words import words
from selfguide.tasks import Example

_SLACK = 0.15  # beyond the examples' range on either side; two to ten of them do not span it

Range = tuple[float, float]


@dataclass(frozen=True)
class Overlap:
    """Ranges of two shares, 0-1.

    Attributes:
        found: of the output's words, those that the input has.
        kept: of the input's words, those that the output has.
    """

    found: Range
    kept: Range

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Overlap:
        """As in these examples."""
        return cls(
            _range([_share(e.output, e.input) for e in examples]),
            _range([_share(e.input, e.output) for e in examples]),
        )

    def misfit(self, input: str, output: str) -> str | None:
        """Why a pair is unlike the examples, in words; None if it is like them."""
        found, kept = _share(output, input), _share(input, output)
        if not self.found[0] <= found <= self.found[1]:
            return f"{found:.0%} of the output's words are in the input, {_words(self.found)}"
        if not self.kept[0] <= kept <= self.kept[1]:
            return f"{kept:.0%} of the input's words are in the output, {_words(self.kept)}"
        return None


def _share(text: str, other: str) -> float:
    own, there = words(text), set(words(other))
    return sum(word in there for word in own) / max(len(own), 1)


def _range(shares: Sequence[float]) -> Range:
    return min(shares) - _SLACK, max(shares) + _SLACK


def _words(range: Range) -> str:
    return f"the examples suggest {max(range[0], 0):.0%} to {min(range[1], 1):.0%}"
