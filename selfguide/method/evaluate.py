"""Step 5: every system answers the evaluation rows, and the scores are compared."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.files import write_atomic, write_json
from selfguide.method.answering import Answerer
from selfguide.method.examples_only import examples_only
from selfguide.method.expert import Answer, Expert, Unlabelled
from selfguide.method.ground import Fold, Ground, choose_ground, leave_one_out
from selfguide.method.pairs import Pair
from selfguide.method.remembering import Remembering
from selfguide.method.systems import Answering, Contest, System, all_systems, prompt_tokens
from selfguide.method.verdict import judge
from selfguide.metrics.exact import exact_match, gold_label, macro_f1, valid_share
from selfguide.metrics.intervals import macro_f1_interval, mean_interval
from selfguide.metrics.rouge import rouge_l
from selfguide.observer import Observer, stoppable
from selfguide.settings import Settings
from selfguide.tasks import EvalRow, Task

_OF_LABELS = ("macro_f1", "macro_f1_low", "macro_f1_high", "valid_share")
PREDICTIONS, METRICS = "predictions.jsonl", "metrics.json"


@dataclass(frozen=True)
class Outcome:
    """What a system answered under one prompt template.

    Attributes:
        answers: to the rows, in their order.
        seconds: that it took, less what another system had computed already.
        prompt_tokens: of a query, on average; None for what reads no prompt.
    """

    answers: list[Answer]
    seconds: float
    prompt_tokens: int | None


def evaluate(
    answerer: Answerer,
    settings: Settings,
    expert: Expert,
    held_out: Sequence[Pair],
    unlabelled: Unlabelled,
    folder: Path,
    cache: Path,
    observer: Observer,
) -> dict[str, Any]:
    """Runs all systems on the evaluation rows, or without any on the best there is.

    Args:
        answerer: the model, which has the adapter "expert", and the task.
        settings: of the run.
        expert: to be judged.
        held_out: synthetic pairs kept from training; judged by where there are no rows.
        unlabelled: inputs for the baselines' label biases.
        folder: gets predictions.jsonl and metrics.json.
        cache: keeps the answers of each system and the adapter of the examples alone. What is
            there is used again as long as nothing that shapes it has changed.
        observer: sees progress, and may stop between steps and systems.

    Returns:
        What metrics.json says.

    Raises:
        AdapterError: the model has no adapter "expert".
        Interrupted: the observer stopped it; systems that were done are in the cache.
    """
    answerer = Remembering(answerer.llm, answerer.task, answerer.prompts)
    ground = choose_ground(answerer, settings, held_out)
    judged = ground.source != "leave_one_out"
    tuned = examples_only(answerer, settings, cache, observer) if judged else None
    contest = Contest(
        answerer.task,
        settings.template,
        tuple((text, label) for text, label in unlabelled),
        settings.seed,
        ground.rows,
        expert if judged else None,
        tuned,
    )
    runner = _Runner(cache, observer)
    metrics = _Scoring(answerer.task, ground.rows, settings.seed)
    chosen: dict[str, Outcome] = {}
    for system in all_systems(contest):
        outcomes = runner.run(system, ground.folds)
        chosen[system.key] = metrics.add(system, outcomes)
    note = ground.note
    if ground.source == "held_out_synthetic":
        note += _on_examples(answerer, runner, contest)
    result = metrics.result(ground, note)
    _write_predictions(folder / PREDICTIONS, chosen)
    write_json(folder / METRICS, result)
    return result


class _Runner:
    """Lets systems answer, or finds what they answered before."""

    def __init__(self, cache: Path, observer: Observer) -> None:
        self._cache, self._observer = cache, observer

    def run(self, system: System, folds: Sequence[Fold], suffix: str = "") -> dict[str, Outcome]:
        """The answers to all rows of the folds, by prompt template (one or several)."""
        outcomes = {}
        variants = system.variants()
        for template, way in variants.items():
            path = self._cache / f"{system.key}.{template}{suffix}.json"
            fingerprint = _fingerprint(way, folds)
            outcome = _load(path, fingerprint)
            if outcome is None:
                title = f"{system.title}, {template}" if len(variants) > 1 else system.title
                outcome = self._answer(title, way, folds)
                write_json(path, {"fingerprint": fingerprint, **asdict(outcome)})
                self._observer.pause_point()
            outcomes[template] = outcome
        return outcomes

    def _answer(self, title: str, way: Answering, folds: Sequence[Fold]) -> Outcome:
        start, progress = time.perf_counter(), stoppable(self._observer, title)
        answers: list[Answer] = []
        tokens: list[int | None] = []
        for fold in folds:
            inputs = [row.input for row in fold.rows]
            answers += way.answer(fold.answerer, inputs, progress)
            tokens.append(prompt_tokens(fold.answerer, way, inputs))
        seconds = time.perf_counter() - start
        known = [each for each in tokens if each is not None]
        return Outcome(answers, seconds, round(sum(known) / len(known)) if known else None)


def _fingerprint(way: Answering, folds: Sequence[Fold]) -> str:
    """A hash of everything that shapes a system's answers."""
    llm = folds[0].answerer.llm
    about: list[Any] = [repr(way), llm.checkpoint.fingerprint(), llm.model.precision]
    for fold in folds:
        task, prompts = fold.answerer.task, fold.answerer.prompts
        examples = [[each.input, each.output] for each in task.examples]
        about += [task.instruction, examples, list(task.labels.items()), prompts.stop]
        about += [prompts.fingerprint, [row.input for row in fold.rows]]
    digest = hashlib.sha256(json.dumps(about).encode())
    if way.asking is not None and way.asking.adapter is not None:
        for tensor in llm.adapters[way.asking.adapter].tensors():
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _load(path: Path, fingerprint: str) -> Outcome | None:
    """An outcome of that fingerprint, if `path` holds one."""
    try:
        values = json.loads(path.read_bytes())
        if values.pop("fingerprint") != fingerprint:
            return None
        answers = [Answer(**each) for each in values.pop("answers")]
        return Outcome(answers, **values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is computed anew


class _Scoring:
    """Turns answers into the rows of metrics.json."""

    def __init__(self, task: Task, rows: Sequence[EvalRow], seed: int) -> None:
        self._task, self._rows, self._seed = task, rows, seed
        self.metric = "exact_match" if task.is_classification else task.metric
        self.entries: list[dict[str, Any]] = []
        self.points: dict[str, list[float]] = {}

    def add(self, system: System, outcomes: Mapping[str, Outcome]) -> Outcome:
        """Scores a system; returns the outcome that counts."""
        means = {name: _mean(self.score(each.answers)) for name, each in outcomes.items()}
        own = next(iter(outcomes))
        name = max(means, key=means.__getitem__) if system.spread == "best" else own
        outcome = outcomes[name]
        points = self.score(outcome.answers)
        low, high = mean_interval(points, self._seed)
        entry = {
            "key": system.key,
            "title": system.title,
            "group": system.group,
            "how": system.how + (f" ({name})" if system.spread == "best" else ""),
            "score": _mean(points),
            "low": low,
            "high": high,
            "exact_match": _mean(self._exact(outcome.answers)),
            "rouge_l": _mean(self._rouge(outcome.answers)),
            **self._of_labels(outcome.answers),
            "prompt_tokens": outcome.prompt_tokens,
            "seconds": outcome.seconds,
            "spread": {"templates": means} if len(means) > 1 else None,
        }
        self.entries.append(entry)
        self.points[system.key] = points
        return outcome

    def score(self, answers: Sequence[Answer]) -> list[float]:
        """Each row's score by the task's metric, 0-100."""
        return self._exact(answers) if self.metric == "exact_match" else self._rouge(answers)

    def result(self, ground: Ground, note: str) -> dict[str, Any]:
        """All of metrics.json."""
        about = {"source": ground.source, "rows": len(self._rows), "note": note}
        compared = judge(self.entries, self.points, self.metric, ground.source, self._seed)
        return {"metric": self.metric, "eval": about, "systems": self.entries, **compared}

    def _exact(self, answers: Sequence[Answer]) -> list[float]:
        """Whether each answer is right; with labels one that states none is wrong."""
        pairs = list(zip(answers, self._rows, strict=True))
        if self._task.is_classification:
            return [100.0 if answer.label in row.outputs else 0.0 for answer, row in pairs]
        return [exact_match(answer.text, row.outputs) for answer, row in pairs]

    def _rouge(self, answers: Sequence[Answer]) -> list[float]:
        pairs = zip(answers, self._rows, strict=True)
        return [rouge_l(answer.text, row.outputs) for answer, row in pairs]

    def _of_labels(self, answers: Sequence[Answer]) -> dict[str, float | None]:
        if not self._task.is_classification:
            return dict.fromkeys(_OF_LABELS)
        labels = [answer.label for answer in answers]
        gold = [gold_label(p, row.outputs) for p, row in zip(labels, self._rows, strict=True)]
        known = list(self._task.labels)
        low, high = macro_f1_interval(labels, gold, known, self._seed)
        values = (macro_f1(labels, gold, known), low, high, valid_share(labels))
        return dict(zip(_OF_LABELS, values, strict=True))


def _on_examples(answerer: Answerer, runner: _Runner, contest: Contest) -> str:
    """What the untuned systems reach on the examples, left out one at a time: a clause."""
    folds = leave_one_out(answerer)
    rows = [row for fold in folds for row in fold.rows]
    scoring = _Scoring(answerer.task, rows, contest.seed)
    for system in all_systems(contest):
        if system.group == "untuned":
            scoring.add(system, runner.run(system, folds, ".examples"))
    scores = ", ".join(f"{each['title']} {each['score']:.0f}" for each in scoring.entries)
    return f"; on the {len(rows)} examples, left out one at a time: {scores}"


def _write_predictions(path: Path, outcomes: Mapping[str, Outcome]) -> None:
    lines = [
        json.dumps({"system": key, "row": row, **asdict(answer)}, ensure_ascii=False)
        for key, outcome in outcomes.items()
        for row, answer in enumerate(outcome.answers)
    ]
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
