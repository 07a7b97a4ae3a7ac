"""The stages of a run, in order: synthesis, finetune, evaluate, report.

Each stage leaves files in the run folder and its record in the manifest. A stage whose record fits
what is asked for now is not done again, one that was cut short goes on where it stood.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import engine
from selfguide.console import Console, duration
from selfguide.doctor import cpu_backend, version_of
from selfguide.errors import TooFewPairs, UserError
from selfguide.folder.rows import read_candidates, read_pairs, write_rows
from selfguide.folder.run_folder import RunFolder, stage_record
from selfguide.lengths import check_lengths, require_learnable
from selfguide.method.annotate import check_annotator
from selfguide.method.answering import Answerer
from selfguide.method.choice import held_out_share
from selfguide.method.evaluate import evaluate
from selfguide.method.expert import Expert
from selfguide.method.finetune import choose_decision, finetune
from selfguide.method.ground import choose_ground
from selfguide.method.lessons import learning_rate
from selfguide.method.pairs import Candidate, Pair
from selfguide.method.synthesis import Synthesised, synthesise
from selfguide.plan import Plan, Shapes, Step, facts
from selfguide.prompts import Prompts
from selfguide.recall import unlabelled
from selfguide.report.build import write_report
from selfguide.settings import Settings
from selfguide.stopwatch import Stopwatch
from selfguide.tasks import Task


def prepare(task: Task, settings: Settings, console: Console) -> Answerer:
    """The model, loaded for a task; the only place of a run that reads weights.

    Raises:
        UserError: the task does not fit the model or the settings.
        EngineError: the model cannot be loaded.
    """
    choose_decision(settings, task)
    check_annotator(settings, task)
    llm = engine.load(settings.model, device=settings.device, quantize=settings.quantize)
    console.say(f"model: {settings.model}, {llm.model.precision} on {llm.model.device}")
    if llm.model.device.type == "cpu":
        console.say(f"CPU kernels: {cpu_backend()}")
    answerer = Answerer(llm, task, Prompts(task, llm.tokenizer))
    check_lengths(answerer, settings)
    console.pause_point()
    return answerer


class Pipeline:
    """One run in a folder that is locked for it.

    Args:
        answerer: the model and the task.
        settings: of the run.
        folder: where files lie and go.
        console: sees progress, may stop the run.
    """

    def __init__(
        self, answerer: Answerer, settings: Settings, folder: RunFolder, console: Console
    ) -> None:
        self.answerer, self.settings = answerer, settings
        self.folder, self.console = folder, console
        self.shapes = Shapes(answerer, settings)
        self.plan = Plan(self.shapes, folder)

    def run(self, command: Sequence[str]) -> dict[str, Any]:
        """Does what is left to do; returns what metrics.json holds.

        Args:
            command: how the run was started, for the manifest.

        Raises:
            TooFewPairs: the filters left too little; the report tells the same.
            UserError: a file in the folder cannot be used.
            Interrupted: the console stopped it.
        """
        self.folder.recover()
        edited = self.plan.edited
        synthesis = self.plan.synthesis()
        self._describe(command, edited)
        try:
            self._synthesise(synthesis)
        except TooFewPairs as error:
            write_report(self.folder.path)
            raise TooFewPairs(f"{error}; {self.folder.report} shows what was dropped") from None
        self.console.pause_point()
        warned = len(self.console.warnings)
        training, held_out = self._pairs()
        expert = self._finetune(training, held_out, self.console.warnings[warned:])
        self.console.pause_point()
        metrics = self._evaluate(expert, held_out)
        write_report(self.folder.path)
        return metrics

    def _describe(self, command: Sequence[str], edited: bool) -> None:
        manifest = self.folder.manifest()
        manifest.values |= {
            "selfguide": version_of("selfguide"),
            **facts(self.answerer, self.settings),
            "machine": machine(),
            "command": list(command),
            "dataset_edited": edited,
        }
        manifest.write()

    def _announce(self, step: Step) -> None:
        words = {"reuse": "is kept", "resume": "goes on", "run": "begins"}
        self.console.say(f"{step.stage} {words[step.action]} ({step.why})")

    def _synthesise(self, step: Step) -> None:
        self._announce(step)
        if step.action == "reuse":
            return
        place = self.folder.workplace("synthesis", self.shapes.ledger.fingerprint)
        ledger = place / self.folder.candidates.name

        def save(candidates: list[Candidate]) -> None:
            write_rows(ledger, (each.row() for each in candidates))

        known = self._known(ledger)
        watch = Stopwatch(place / "clock.json")
        warned = len(self.console.warnings)
        try:
            with watch:
                made = synthesise(self.answerer, self.settings, known, save, self.console)
        except TooFewPairs as error:
            self._give_up(ledger, {**watch.values, "warnings": self.console.warnings[warned:]})
            raise error
        write_rows(place / self.folder.dataset.name, (pair.row() for pair in made.training))
        write_rows(place / self.folder.held_out.name, (pair.row() for pair in made.held_out))
        names = [path.name for path in self._synthesis_files]
        counts = _synthesis_counts(made)
        record = {"ledger": self.shapes.ledger.fingerprint, **watch.values, **counts}
        self.folder.publish("synthesis", place, names, stage_record(self.shapes.synthesis, record))
        self._done("synthesis", watch)

    @property
    def _synthesis_files(self) -> tuple[Path, ...]:
        return self.folder.candidates, self.folder.dataset, self.folder.held_out

    def _known(self, ledger: Path) -> list[Candidate]:
        """Candidates of the rounds that earlier runs of the same shape have finished."""
        if ledger.exists():
            return read_candidates(ledger)
        record = self.folder.manifest().stage("synthesis") or {}
        same = record.get("ledger") == self.shapes.ledger.fingerprint
        published = self.folder.candidates
        return read_candidates(published) if same and published.exists() else []

    def _give_up(self, ledger: Path, values: dict[str, Any]) -> None:
        """Leaves the ledger for the report, and nothing that belongs to other pairs."""
        write_rows(self.folder.candidates, (each.row() for each in read_candidates(ledger)))
        if aside := self.folder.set_results_aside():
            self.console.say(f"results of earlier settings are in {aside}")
        manifest = self.folder.manifest()
        manifest.values["stages"] = {"synthesis": {"fingerprint": None, **values}}
        manifest.write()

    def _pairs(self) -> tuple[list[Pair], list[Pair]]:
        """Training and held-out pairs as they lie in the folder."""
        dataset, held_out = self.folder.dataset, self.folder.held_out
        if self.plan.edited:
            self.console.say(f"{dataset.name} was edited by hand and is used as it is")
        training = self._read_pairs(dataset)
        if not training:
            raise UserError(f"{dataset}: no pair in it; remove it to write it anew")
        taught = {pair.output for pair in training}
        missing = [label for label in self.answerer.task.labels if label not in taught]
        if missing:
            self.console.warn(f"{dataset.name} has no pair with the label {' or '.join(missing)}")
        spared = self._read_pairs(held_out) if held_out.exists() else []
        self._compare(spared)
        return training, spared

    def _compare(self, held_out: Sequence[Pair]) -> None:
        """Says where other pairs are held out than the task and the settings want."""
        if self.settings.patience is not None and not held_out:
            self.console.warn("patience: no pairs are held out to stop by, so all passes are made")
        if held_out and not held_out_share(self.answerer.task, self.settings):
            self.console.say(
                f"{len(held_out)} pairs stay held out, as before there was an eval_file; to learn "
                "them too, start over with --resume never"
            )

    def _read_pairs(self, path: Path) -> list[Pair]:
        pairs = read_pairs(path, self.answerer.task)
        require_learnable(self.answerer, self.settings, pairs)
        return [pair for _, pair in pairs]

    def _finetune(
        self, training: list[Pair], held_out: list[Pair], warnings: Sequence[str]
    ) -> Expert:
        step = self.plan.finetune()
        self._announce(step)
        if step.action == "reuse":
            expert = Expert.load(self.folder.path)
            expert.attach(self.answerer.llm, self.folder.path)
            return expert
        shape = self.shapes.finetune(self.folder)
        place = self.folder.workplace("finetune", shape.fingerprint)
        place.mkdir(parents=True, exist_ok=True)
        with Stopwatch(place / "clock.json") as watch:
            made = finetune(
                self.answerer,
                self.settings,
                training,
                held_out,
                unlabelled(self.folder),
                place,
                self.folder.cache,
                self.console,
            )
        lr = learning_rate(self.answerer, self.settings)
        about = {"pairs": len(training), "lr": lr, "warnings": list(warnings)}
        trainings = [asdict(each) for each in made.trainings]
        record = {"trainings": trainings, **about, **watch.values}
        names = [self.folder.adapter.name, self.folder.expert.name]
        self.folder.publish("finetune", place, names, stage_record(shape, record))
        self._done("finetune", watch)
        return made.expert

    def _evaluate(self, expert: Expert, held_out: list[Pair]) -> dict[str, Any]:
        step = self.plan.evaluate()
        self._announce(step)
        if step.action == "reuse":
            return dict(json.loads(self.folder.metrics.read_bytes()))
        shape = self.shapes.evaluate(self.folder)
        place = self.folder.workplace("evaluate", shape.fingerprint)
        place.mkdir(parents=True, exist_ok=True)
        rows = choose_ground(self.answerer, self.settings, held_out).rows
        write_rows(place / self.folder.evaluation.name, (asdict(row) for row in rows))
        with Stopwatch(place / "clock.json") as watch:
            metrics = evaluate(
                self.answerer,
                self.settings,
                expert,
                held_out,
                unlabelled(self.folder),
                place,
                self.folder.cache,
                self.console,
            )
        names = [
            self.folder.evaluation.name,
            self.folder.predictions.name,
            self.folder.metrics.name,
        ]
        record = {"rows": len(rows), **watch.values}
        self.folder.publish("evaluate", place, names, stage_record(shape, record))
        self._done("evaluate", watch)
        return metrics

    def _done(self, stage: str, watch: Stopwatch) -> None:
        self.console.say(
            f"{stage} took {duration(watch.seconds)}, at most {watch.peak_mib:.0f} MiB of memory"
        )


def _synthesis_counts(made: Synthesised) -> dict[str, Any]:
    return {
        "rounds": max((each.round for each in made.candidates), default=-1) + 1,
        "candidates": len(made.candidates),
        "kept": sum(each.kept for each in made.candidates),
        "held_out": len(made.held_out),
        "warnings": made.warnings,
    }


def machine() -> dict[str, Any]:
    """Where a run ran, as far as it bears on times and rounding."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }
