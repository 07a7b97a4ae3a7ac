"""The end of synthesis: which of a ledger's pairs are trained on, and whether they are enough."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import ceil

import numpy as np

from engine.seeds import mix
from selfguide.errors import TooFewPairs
from selfguide.method.collapse import at_chance, collapsed
from selfguide.method.pairs import Candidate, answered, survivors
from selfguide.method.variety import most_varied
from selfguide.observer import Observer
from selfguide.settings import Settings
from selfguide.tasks import Task

_HELD_OUT_TO_STOP = 0.1  # share of the synthetic pairs that is kept from training, to end it by
_HELD_OUT_TO_JUDGE = 0.25  # the same where no evaluation rows judge the expert, ...
_ENOUGH_TO_JUDGE = 12  # ... or so many, if they are a third at most
_FEWEST_TO_SPLIT = 20  # pairs below which all are trained on
_LOPSIDED = 2  # a label may have so many times the pairs of the rarest one
_SPLITTING = 2  # a salt


def held_out_share(task: Task, settings: Settings) -> float:
    """The share of the synthetic pairs kept from training: where something wants them."""
    if not task.eval_rows:
        return _HELD_OUT_TO_JUDGE
    return 0.0 if settings.patience is None else _HELD_OUT_TO_STOP


def label_quota(task: Task, settings: Settings) -> int:
    """Pairs wanted of each label."""
    return ceil(settings.pairs / max(len(task.labels), 1))


def label_pool(task: Task, settings: Settings) -> int:
    """Survivors wanted of each label, for its pairs to be chosen from."""
    return ceil(settings.pool * label_quota(task, settings))


class Choice:
    """The last word on a ledger: which survivors are trained on, held out, or too many.

    Attributes:
        warnings: what was said meanwhile.
    """

    def __init__(
        self, ledger: Sequence[Candidate], task: Task, settings: Settings, observer: Observer
    ) -> None:
        self._ledger, self._task, self._settings, self._observer = ledger, task, settings, observer
        self.warnings: list[str] = []
        self._missing = ""

    def keep(self) -> list[Candidate]:
        """Drops what is of no use or too many, and marks the others in the ledger as kept."""
        self._drop_if_collapsed()
        doubt = at_chance(answered(self._ledger)) if survivors(self._ledger) else None
        if doubt:
            self._warn(doubt)
        self._drop_if_a_label_is_missing()
        self._balance()
        kept = survivors(self._ledger)
        for candidate in kept:
            candidate.kept = True
        return kept

    def _drop_if_collapsed(self) -> None:
        reason = collapsed(answered(self._ledger), self._task)
        if reason is None:
            return
        self._warn(f"{reason}; none of these pairs is trained on")
        for candidate in survivors(self._ledger):
            candidate.drop("collapsed", reason)

    def _drop_if_a_label_is_missing(self) -> None:
        left = survivors(self._ledger)
        missing = self._task.labels.keys() - {each.output for each in left}
        if not left or not missing:
            return
        named = ", ".join(repr(label) for label in self._task.labels if label in missing)
        self._missing = f"no pair of {named} survived"
        for candidate in left:
            candidate.drop("balance", f"{self._missing}, and without it nothing can be learnt")

    def _balance(self) -> None:
        """No label far ahead of the rarest, none above its share of the pairs wanted.

        With a pool of 1 those that came first stay, else the surest and of them the most varied.
        """
        kinds: dict[str | None, list[Candidate]] = defaultdict(list)
        for each in survivors(self._ledger):
            kinds[each.output if self._task.labels else None].append(each)
        rarest = min(map(len, kinds.values()), default=0)
        most = min(label_quota(self._task, self._settings), _LOPSIDED * rarest)
        for label, kind in kinds.items():
            for candidate in self._surplus(label, kind, most):
                candidate.drop("balance", f"{most} other pairs of its kind were kept")

    def _surplus(
        self, label: str | None, kind: Sequence[Candidate], most: int
    ) -> Sequence[Candidate]:
        """Pairs of a label (None: without labels) that are more than `most`."""
        if self._settings.pool == 1:
            return kind[most:]
        examples = [each.input for each in self._task.examples if label in (None, each.output)]
        sure = kind if self._task.labels else _surest(kind, most)
        chosen = {sure[at].id for at in most_varied([c.input for c in sure], examples, most)}
        return [candidate for candidate in kind if candidate.id not in chosen]

    def require_enough(self, kept: Sequence[Candidate]) -> None:
        """Warns of fewer pairs than wanted; raises TooFewPairs below `settings.at_least`."""
        if len(kept) >= self._settings.pairs:
            return
        dropped = Counter(each.filter for each in self._ledger if each.filter)
        took = ", ".join(f"{name} {count}" for name, count in dropped.most_common())
        tried = len(self._ledger)
        line = (
            f"{len(kept)} of the {self._settings.pairs} pairs wanted survived of {tried} candidates"
            + (f" (dropped by {took})" if took else "")
            + (f"; {self._missing}" if self._missing else "")
        )
        self._warn(line)
        if len(kept) < self._settings.at_least:
            spent = tried >= self._settings.max_candidates
            more = f"try more inputs (--max-candidates {2 * tried}), " if spent else ""
            raise TooFewPairs(
                f"{line}; at least {self._settings.at_least} are needed to train: use a larger "
                f"model (--model), give inputs of your own (inputs_file), {more}or go on with what "
                f"there is (--at-least {len(kept)})"
            )

    def held_out(self, kept: Sequence[Candidate]) -> list[int]:
        """Ids of those that are not trained on, drawn by the seed, of each label as large a share.

        A label with fewer pairs than others would be answered less often.
        """
        if len(kept) < _FEWEST_TO_SPLIT:
            return []
        count = round(held_out_share(self._task, self._settings) * len(kept))
        if not self._task.eval_rows:
            count = max(count, min(_ENOUGH_TO_JUDGE, len(kept) // 3))
        random = np.random.default_rng(mix(self._settings.seed, _SPLITTING))
        kinds: dict[str | None, list[int]] = defaultdict(list)
        for at in random.permutation(len(kept)):
            kinds[kept[at].output if self._task.labels else None].append(kept[at].id)
        turns = [
            (place / len(ids), random.random(), id)
            for ids in kinds.values()
            for place, id in enumerate(ids, start=1)
        ]
        return sorted(id for _, _, id in sorted(turns)[:count])

    def _warn(self, line: str) -> None:
        self.warnings.append(line)
        self._observer.warn(line)


def _surest(kind: Sequence[Candidate], least: int) -> list[Candidate]:
    """The pairs of full agreement, in free text word for word; if too few, those nearest to it."""
    ranked = sorted(kind, key=lambda candidate: candidate.agreement or 0.0, reverse=True)
    return ranked[: max(least, sum(each.agreement == 1 for each in kind))]
