"""The layout of a run folder, its lock, and the moment in which a stage's results become valid.

A stage works in `unfinished/STAGE-FINGERPRINT/`. What it made lies there, complete, before its
record `stage.json` is written; then the files take their places and the manifest its record. A run
that is killed in between does the rest when it starts again, and a half-done stage is found by its
fingerprint, whatever was run in the same folder since.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from engine.files import write_atomic, write_json
from selfguide.errors import UserError
from selfguide.folder.manifest import Manifest, Shape, file_hashes
from selfguide.folder.temporary import becomes, remove_all_temporaries, remove_temporaries
from selfguide.tasks import Task

_RECORD = "stage.json"
_MEASURED = ("evaluation.jsonl", "predictions.jsonl", "metrics.json")
_LATER_THAN_SYNTHESIS = ("dataset.jsonl", "held_out.jsonl", "adapter", "expert.json", *_MEASURED)
_WRITTEN = ("candidates.jsonl", *_LATER_THAN_SYNTHESIS, "report.html", "manifest.json", ".pid")
_BEFORE_A_MANIFEST = (".lock", ".pid", "log.txt")  # what the first moments of a run leave


class RunFolder:
    """Where a run keeps everything; nothing is made before `lock`.

    Args:
        path: of the folder, which need not exist.

    Raises:
        UserError: no folder can have this name.
    """

    def __init__(self, path: Path) -> None:
        if "\0" in str(path):
            raise UserError(f"{str(path)!r}: no folder can have this name; choose another --out")
        if path.name in ("", ".."):  # such a path does not tell the folder's name
            path = path.resolve()
        self.path = path
        self.candidates = path / "candidates.jsonl"
        self.dataset = path / "dataset.jsonl"
        self.held_out = path / "held_out.jsonl"
        self.adapter = path / "adapter"
        self.expert = path / "expert.json"
        self.evaluation = path / "evaluation.jsonl"
        self.predictions = path / "predictions.jsonl"
        self.metrics = path / "metrics.json"
        self.cache = path / "cache"
        self.report = path / "report.html"
        self.log = path / "log.txt"
        self._manifest = path / "manifest.json"
        self._unfinished = path / "unfinished"
        self._pid = path / ".pid"

    def manifest(self) -> Manifest:
        """The manifest as it is on disk; an empty one if there is none."""
        return Manifest(self._manifest)

    def require_own(self) -> None:
        """Raises UserError if files lie there that no run has made; changes nothing."""
        if self._manifest.exists() or not self.path.is_dir():
            return
        names = sorted(each.name for each in self.path.iterdir())
        strange = [n for n in names if n not in _BEFORE_A_MANIFEST and not becomes(n)]
        if strange:
            raise UserError(
                f"{self.path}: has files but is no run folder ({', '.join(strange[:3])}"
                f"{', ...' if len(strange) > 3 else ''}; no manifest.json); choose another --out"
            )

    def require_expert(self) -> None:
        """Raises UserError if no finished expert lies there, and says what is missing."""
        if not self.path.is_dir():
            what = "a file, not a run folder" if self.path.exists() else "no such run folder"
            raise UserError(f"{self.path}: {what}")
        if self.expert.exists() and self.adapter.is_dir():
            return
        manifest = self.manifest()
        synthesis = manifest.stage("synthesis")
        if synthesis and synthesis["fingerprint"] is None:
            raise UserError(
                f"{self.path}: its run found too few pairs to train an expert; {self.report} shows "
                "what was dropped"
            )
        command = manifest.values.get("command")
        finish = f"finish it with: {shlex.join(command)}" if command else "it is no run's folder"
        raise UserError(f"{self.path}: there is no expert in it yet; {finish}")

    def holds_another(self, task: Task) -> bool:
        """Whether what lies there is of a task that shares no example with this one.

        Raises:
            UserError: the manifest is none.
        """
        known = (self.manifest().values.get("task") or {}).get("examples", [])
        shared = [each for each in task.examples if asdict(each) in known]
        return bool(known) and not shared

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder, and keeps other runs out of it.

        Raises:
            UserError: another run is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.path}: {self._holder()}") from None
        try:
            write_atomic(self._pid, f"{os.getpid()}\n".encode())
            yield
        finally:
            self._pid.unlink(missing_ok=True)
            lock.release()

    def _holder(self) -> str:
        try:
            pid = f" (process {self._pid.read_text(encoding='ascii').strip()})"
        except OSError:
            pid = ""
        return f"another run{pid} is at work in this folder; wait for it, or choose another --out"

    def set_aside(self) -> Path:
        """Gives the folder the first free name of the form `x.1`; returns it.

        Raises:
            UserError: another run, or whoever started this one, is at work in it.
        """
        here = Path.cwd()
        if self.path.resolve() in (here, *here.parents):
            raise UserError(
                f"{self.path}: cannot be renamed while you are in it; give the command elsewhere"
            )
        aside = _free(self.path)
        with self.lock():
            self.path.rename(aside)
        return aside

    def workplace(self, stage: str, fingerprint: str) -> Path:
        """Where a stage of that fingerprint does its work; it may not exist yet."""
        return self._unfinished / f"{stage}-{fingerprint[:16]}"

    def publish(
        self, stage: str, workplace: Path, names: Sequence[str], record: Mapping[str, Any]
    ) -> None:
        """Puts what a stage made in its place and notes it in the manifest, all or nothing.

        Args:
            stage: its name in the manifest.
            workplace: holds the results; removed with all others of this stage.
            names: the files and folders among them that are results.
            record: what the manifest shall say; the results' hashes are added.
        """
        values = {**record, "files": file_hashes(workplace, names)}
        write_json(workplace / _RECORD, {"stage": stage, "names": list(names), "record": values})
        self._move_in(workplace)

    def recover(self) -> None:
        """Ends the publications that a killed run had begun, and removes its half-written files."""
        remove_temporaries(self.path, _WRITTEN)
        for own in (self._unfinished, self.cache):
            remove_all_temporaries(own)
        for record in sorted(self._unfinished.glob(f"*/{_RECORD}")):
            self._move_in(record.parent)

    def _move_in(self, workplace: Path) -> None:
        begun = json.loads((workplace / _RECORD).read_bytes())
        if begun["stage"] == "finetune":
            self._forget_scores()
        for name in begun["names"]:
            if (workplace / name).exists():
                self._replace(workplace / name, self.path / name)
        manifest = self.manifest()
        manifest.values["stages"][begun["stage"]] = begun["record"]
        manifest.write()
        for other in self._unfinished.glob(f"{begun['stage']}-*"):
            (other / _RECORD).unlink(missing_ok=True)
            shutil.rmtree(other)
        if not any(self._unfinished.iterdir()):
            self._unfinished.rmdir()

    def _replace(self, new: Path, place: Path) -> None:
        """Like `os.replace`, for folders too."""
        if new.is_dir() and place.exists():
            old = self._unfinished / f"old-{place.name}"
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
            os.replace(new, place)
            shutil.rmtree(old)
        else:
            os.replace(new, place)

    def _forget_scores(self) -> None:
        """Removes what was measured of an expert that is about to be replaced."""
        for path in (*(self.path / name for name in _MEASURED), self.report):
            path.unlink(missing_ok=True)
        manifest = self.manifest()
        if manifest.values["stages"].pop("evaluate", None):
            manifest.write()

    def set_results_aside(self) -> Path | None:
        """Moves the results of earlier settings to `earlier.1`, `earlier.2`, ...; returns where."""
        found = [name for name in _LATER_THAN_SYNTHESIS if (self.path / name).exists()]
        if not found:
            return None
        earlier = _free(self.path / "earlier")
        earlier.mkdir()
        for name in found:
            (self.path / name).rename(earlier / name)
        return earlier

    def intact(self, record: Mapping[str, Any]) -> bool:
        """Whether the results of a finished stage are still what it wrote."""
        files: dict[str, str] = record.get("files", {})
        return file_hashes(self.path, files) == files


def _free(path: Path) -> Path:
    """The first of the names `x.1`, `x.2`, ... that nothing has."""
    number = 1
    while (free := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def stage_record(shape: Shape, values: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's record in the manifest: its fingerprint, what shaped it, and `values`."""
    return {"fingerprint": shape.fingerprint, "shaped_by": shape.hashes(), **values}
