"""Run folders: rows, locks, publishing, and what a killed run leaves."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from selfguide.ending import disk_trouble_told
from selfguide.errors import UserError
from selfguide.folder.manifest import Shape
from selfguide.folder.rows import read_candidates, read_pairs, write_rows
from selfguide.folder.run_folder import RunFolder, stage_record
from selfguide.folder.trouble import disk_trouble
from selfguide.method.pairs import Candidate, Pair
from selfguide.tasks import Example, Task

_TASK = Task(
    name="mood",
    instruction="Say how it feels.",
    examples=(Example("fine soup", "good"), Example("cold soup", "bad")),
    labels={"good": "good", "bad": "bad"},
)

_MEASURED = {"seconds": 1.0, "peak_mib": 90.0}


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    candidates = [
        Candidate(0, 0, "record", 'a "b"\nc', "good", 7, "good", {"good": -0.1, "bad": -2.4}, 1.0),
        Candidate(1, 0, "user", "日本 \u2028 x", None, 8, filter="noise", reason="why not"),
    ]
    pairs = [Pair("x", "good", "example"), Pair("日本 \u2028 y", "bad", "synthetic", 4)]
    write_rows(tmp_path / "candidates.jsonl", (each.row() for each in candidates))
    write_rows(tmp_path / "dataset.jsonl", (each.row() for each in pairs))
    assert read_candidates(tmp_path / "candidates.jsonl") == candidates
    path = tmp_path / "dataset.jsonl"
    assert read_pairs(path, _TASK) == [(f"{path}:1", pairs[0]), (f"{path}:2", pairs[1])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "x", "output": "good"', ":3: not JSON"),
        ('["x", "good"]', ":3: expected an object"),
        ('{"input": "x", "output": "fair"}', ":3: output: 'fair' is none of good, bad"),
        ('{"input": "  ", "output": "good"}', ":3: input: empty"),
        ('{"input": "x"}', ":3: output: expected text, got nothing"),
        ('{"input": "x", "output": "good", "label": 1}', ":3: unknown key 'label'"),
        ('{"input": "x", "output": "good", "origin": "me"}', ":3: origin: 'me'"),
        ('{"input": "x", "output": "good", "id": true}', ":3: id: True"),
    ],
)
def test_a_slip_in_a_hand_edited_file_is_named_by_its_line(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "dataset.jsonl"
    path.write_text(f'{{"input": "a", "output": "good"}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_pairs(path, _TASK)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_hand_written_row_needs_input_and_output_only(tmp_path: Path) -> None:
    path = tmp_path / "dataset.jsonl"
    path.write_text('{"output": " bad", "input": "no salt "}\n', encoding="utf-8")
    assert read_pairs(path, _TASK) == [(f"{path}:1", Pair("no salt", "bad", "synthetic"))]


def test_a_number_is_text_as_it_is_in_a_task_file(tmp_path: Path) -> None:
    path = tmp_path / "dataset.jsonl"
    path.write_text('{"output": 1, "input": 2.5}\n', encoding="utf-8")
    free = replace(_TASK, labels={})
    assert [(pair.input, pair.output) for _, pair in read_pairs(path, free)] == [("2.5", "1")]


def test_a_label_may_be_written_in_another_case_and_with_a_full_stop(tmp_path: Path) -> None:
    path = tmp_path / "dataset.jsonl"
    path.write_text('{"output": "Bad.", "input": "no salt"}\n', encoding="utf-8")
    assert [pair.output for _, pair in read_pairs(path, _TASK)] == ["bad"]


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from selfguide.folder.run_folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).lock(): print('in')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    with RunFolder(tmp_path / "x").lock():
        for _ in range(2):  # the refusal must not wipe out who holds the lock
            refused = subprocess.run(command, capture_output=True, text=True, check=False)
            assert f"another run (process {os.getpid()}) is at work" in refused.stderr
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "in\n"


def _prepare(folder: RunFolder, text: str) -> tuple[Path, Shape]:
    shape = Shape({"epochs": 3, "text": text})
    place = folder.workplace("finetune", shape.fingerprint)
    (place / "adapter").mkdir(parents=True)
    (place / "adapter" / "weights").write_text(text)
    (place / "expert.json").write_text(text)
    (place / "checkpoint").write_text("not a result")
    return place, shape


def test_results_are_published_together_with_their_record(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for text in ("first", "second"):
        place, shape = _prepare(folder, text)
        folder.publish(
            "finetune", place, ["adapter", "expert.json"], stage_record(shape, _MEASURED)
        )
        record = folder.manifest().stage("finetune")
        assert record is not None
        assert record["fingerprint"] == shape.fingerprint
        assert (folder.adapter / "weights").read_text() == folder.expert.read_text() == text
        assert folder.intact(record)
        assert not (tmp_path / "unfinished").exists()
        assert not (tmp_path / "checkpoint").exists()
    (folder.adapter / "weights").write_text("edited")
    assert not folder.intact(record)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(12))
def test_a_publication_cut_short_at_any_moment_is_done_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    folder = RunFolder(tmp_path)
    place, shape = _prepare(folder, "old")
    folder.publish("finetune", place, ["adapter", "expert.json"], stage_record(shape, _MEASURED))
    place, shape = _prepare(folder, "new")
    with monkeypatch.context() as patch:
        _kill_at(patch, moment)
        try:
            folder.publish(
                "finetune", place, ["adapter", "expert.json"], stage_record(shape, _MEASURED)
            )
        except _Killed:
            begun = (place / "stage.json").exists() or folder.expert.read_text() == "new"
        else:
            begun = True
    RunFolder(tmp_path).recover()
    record = folder.manifest().stage("finetune")
    expected = "new" if begun else "old"
    assert record is not None
    assert folder.intact(record)
    assert (folder.adapter / "weights").read_text() == folder.expert.read_text() == expected
    assert begun or (place / "expert.json").read_text() == "new"


def _kill_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Everything that changes a name on disk raises from the call number `moment` on."""
    calls = 0

    def counted(function):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls > moment:
                raise _Killed
            return function(*args, **kwargs)

        return call

    patch.setattr(os, "replace", counted(os.replace))
    patch.setattr(Path, "rename", counted(Path.rename))
    patch.setattr("selfguide.folder.run_folder.shutil.rmtree", counted(__import__("shutil").rmtree))


def test_what_changed_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    place, _ = _prepare(folder, "x")
    shape = Shape({"epochs": 3, "lr": 1e-4, "gone": None})
    folder.publish("finetune", place, ["expert.json"], stage_record(shape, _MEASURED))
    now = Shape({"epochs": 1, "lr": 1e-4, "new": 2})
    assert folder.manifest().changes("finetune", now) == ["epochs", "gone", "new"]
    assert folder.manifest().changes("finetune", shape) == []


def test_starting_anew_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "x")
    for number in (1, 2):
        folder.path.mkdir()
        (folder.path / "note").write_text(str(number))
        assert folder.set_aside() == tmp_path / f"x.{number}"
        assert (tmp_path / f"x.{number}" / "note").read_text() == str(number)


def test_a_folder_that_a_run_or_the_user_is_in_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "x")
    with folder.lock(), pytest.raises(UserError, match="another run"):
        RunFolder(tmp_path / "x").set_aside()
    monkeypatch.chdir(tmp_path / "x")
    with pytest.raises(UserError, match="while you are in it"):
        RunFolder(Path()).set_aside()
    assert folder.path.is_dir()


def test_earlier_results_are_moved_not_lost(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.set_results_aside() is None
    for number in (1, 2):
        folder.expert.write_text(str(number))
        assert folder.set_results_aside() == tmp_path / f"earlier.{number}"
    for number in (1, 2):
        assert (tmp_path / f"earlier.{number}" / "expert.json").read_text() == str(number)


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.lock():
        folder.log.write_text("")
    folder.require_own()  # a run that was killed at once left no more than this
    (tmp_path / "dataset.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"has files but is no run folder \(dataset\.jsonl; no man"):
        folder.require_own()
    folder.manifest().write()
    folder.require_own()


def test_only_half_written_files_of_runs_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    ours = [
        *(tmp_path / name for name in (".metrics.json.12.tmp", "..pid.7.tmp")),
        *(tmp_path / at / ".clock.json.12.tmp" for at in ("cache", "unfinished/evaluate-0")),
    ]
    theirs = [
        *(tmp_path / name for name in (".notes.md.12.tmp", ".metrics.json.tmp", "x.tmp")),
        tmp_path / "pictures" / ".metrics.json.12.tmp",
        tmp_path / "cache" / ".swap.tmp",
    ]
    for path in (*ours, *theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / ".report.html.3.tmp").mkdir()
    folder.recover()
    assert [path for path in ours if path.exists()] == []
    assert [path for path in theirs if not path.exists()] == []
    assert (tmp_path / ".report.html.3.tmp").is_dir()


def test_a_new_expert_is_not_shown_with_the_scores_of_the_old_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for stage, names in (("finetune", ["expert.json"]), ("evaluate", ["metrics.json"])):
        _publish(folder, stage, names)
    folder.report.write_text("")
    assert set(folder.manifest().values["stages"]) == {"finetune", "evaluate"}
    _publish(folder, "finetune", ["expert.json"])
    assert set(folder.manifest().values["stages"]) == {"finetune"}
    assert not folder.metrics.exists()
    assert not folder.report.exists()


def _publish(folder: RunFolder, stage: str, names: list[str]) -> None:
    shape = Shape({"stage": stage})
    place = folder.workplace(stage, shape.fingerprint)
    place.mkdir(parents=True)
    for name in names:
        (place / name).write_text("{}")
    folder.publish(stage, place, names, stage_record(shape, _MEASURED))


def test_a_stage_with_an_incomplete_record_counts_as_not_done(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    _publish(folder, "finetune", ["expert.json"])
    manifest = folder.manifest()
    record = manifest.stage("finetune")
    assert record is not None
    manifest.values["stages"]["finetune"] = dict(record)
    del manifest.values["stages"]["finetune"]["fingerprint"]
    manifest.values["stages"]["evaluate"] = "done"
    manifest.write()
    manifest.values["stages"]["synthesis"] = {**record, "files": 3}
    manifest.write()
    assert folder.manifest().values["stages"] == {}


def test_a_broken_manifest_is_one_clear_line(tmp_path: Path) -> None:
    for text in ("{", '{"stages": []}', "{}"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json: not a run's manifest"):
            RunFolder(tmp_path).manifest()


def test_a_file_in_the_folders_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    folder = RunFolder(tmp_path / "x")
    with pytest.raises(OSError, match="exists") as caught, folder.lock():
        pass
    assert str(tmp_path / "x") in str(disk_trouble(caught.value, folder.path))


def test_disk_trouble_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(disk_trouble(full, tmp_path)).startswith(
        f"{tmp_path}: No space left on device; free"
    )
    name = str(tmp_path / ".log.txt.17.tmp")
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    assert str(disk_trouble(denied, tmp_path)).startswith(f"{tmp_path}/log.txt: Permission denied")
    assert disk_trouble(OSError(errno.EPIPE, "Broken pipe"), tmp_path) is None
    assert str(disk_trouble(full, Path())).startswith(".: No space left on device; free")
    for path in (tmp_path, tmp_path / "x"):  # whatever it is, within the folder it is the user's
        odd = OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        assert str(disk_trouble(odd, tmp_path)).startswith(f"{path}: Input/output error; choose")
    assert disk_trouble(OSError(errno.EIO, "Input/output error", "/elsewhere"), tmp_path) is None


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_no_folder_can_have_is_one_clear_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="choose another --out"):
        _lock(tmp_path / name)


def _lock(path: Path) -> None:
    with disk_trouble_told(path), RunFolder(path).lock():
        pass


def test_the_manifest_is_readable_json(tmp_path: Path) -> None:
    manifest = RunFolder(tmp_path).manifest()
    manifest.values["task"] = {"name": "größe"}
    manifest.write()
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8")) == {
        "stages": {},
        "task": {"name": "größe"},
    }
