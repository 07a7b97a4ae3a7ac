"""An answerer that does not score the same text twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from selfguide.method.answering import Answerer, OnProgress, Scores
from selfguide.prompts import Asking


@dataclass(frozen=True)
class Remembering(Answerer):
    """Scores an input once for each way to ask, however many systems want its scores.

    For work during which no adapter changes. A score depends on the input alone, so it is the one
    that would have been computed again (on a GPU within rounding).
    """

    _known: dict[tuple[object, str], Scores] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def label_scores(
        self, inputs: Sequence[str], asking: Asking, progress: OnProgress = None
    ) -> Scores:
        """See `Answerer.label_scores`."""
        scores = super().label_scores
        return self._rows(asking, inputs, lambda new: scores(new, asking, progress))

    def channel_scores(
        self, inputs: Sequence[str], adapter: str | None = None, progress: OnProgress = None
    ) -> Scores:
        """See `Answerer.channel_scores`."""
        scores = super().channel_scores
        return self._rows(adapter, inputs, lambda new: scores(new, adapter, progress))

    def _rows(
        self, way: object, inputs: Sequence[str], score: Callable[[list[str]], Scores]
    ) -> Scores:
        """A row for each input, of which `score` computes those that are new."""
        new = [text for text in dict.fromkeys(inputs) if (way, text) not in self._known]
        if new:
            self._known.update(zip(((way, text) for text in new), score(new), strict=True))
        rows = [self._known[way, text] for text in inputs]
        return np.array(rows, np.float64).reshape(len(inputs), len(self.task.labels))
