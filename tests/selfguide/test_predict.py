"""Using what a run made: texts, standard input, files, other systems, and folders without it."""

from __future__ import annotations

import io
import json
import math
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

import engine
from selfguide.method.expert import Expert
from selfguide.predict import main
from tests.engine import tiny_models, tiny_tokenizers
from tests.selfguide.method import tiny
from tests.selfguide.tiny_runs import labelled_task_file, run


def typed(text: str | bytes) -> io.TextIOWrapper:
    """Standard input that holds a text."""
    return io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()))


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expert")
    assert run(labelled_task_file(folder), folder / "run") == 0
    return folder / "run"


def _rows(capsys: pytest.CaptureFixture[str], *given: str) -> list[dict[str, object]]:
    capsys.readouterr()
    assert main([*given, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_answers_are_those_of_the_evaluation(
    expert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [json.loads(line) for line in (expert / "evaluation.jsonl").read_text().splitlines()]
    predictions = [
        json.loads(line) for line in (expert / "predictions.jsonl").read_text().splitlines()
    ]
    texts = [row["input"] for row in inputs]
    systems = {row["system"] for row in predictions} - {"majority"}
    assert {"expert", "few_shot", "few_shot_bias_removed", "examples_only"} <= systems
    for system in systems:
        expected = [row["text"] for row in predictions if row["system"] == system]
        rows = _rows(capsys, str(expert), *texts, "--system", system)
        assert [row["output"] for row in rows] == expected
        assert [row["input"] for row in rows] == texts


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_expert_of_a_quantized_model_answers_as_it_was_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert run(labelled_task_file(tmp_path), tmp_path / "run", "--quantize", kind) == 0
    assert f" with {kind} weights on cpu" in capsys.readouterr().err
    loaded = []
    load = engine.load
    monkeypatch.setattr(engine, "load", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[-1])
    test_answers_are_those_of_the_evaluation(tmp_path / "run", capsys)
    assert {llm.model.quantized for llm in loaded} == {kind}


def test_the_recommended_system_can_be_used(
    expert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recommended = json.loads((expert / "metrics.json").read_text())["recommended"]
    named = _rows(capsys, str(expert), "one teal", "--system", recommended)
    assert _rows(capsys, str(expert), "one teal", "--system", "recommended") == named


def test_labels_come_with_probabilities(expert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [row] = _rows(capsys, str(expert), "one teal")
    shares = row["probabilities"]
    assert isinstance(shares, dict)
    assert set(shares) == {"long", "short"}
    assert math.isclose(sum(shares.values()), 1.0, rel_tol=1e-6)
    assert row["output"] == row["label"] == max(shares, key=shares.__getitem__)


def test_texts_standard_input_and_files_give_the_same(
    expert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = ["one teal", "one orange", "one red"]
    path = tmp_path / "inputs.jsonl"
    path.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    monkeypatch.setattr("sys.stdin", typed("\n".join(texts) + "\n"))
    printed = []
    for given in (texts, ["-"], [str(path)]):
        capsys.readouterr()
        assert main([str(expert), *given]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    assert len(printed[0].splitlines()) == 3
    assert set(printed[0].split()) <= {"long", "short"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"input": "a"}\n{"text": "b"}\n', ":2: input: expected text"),
        ('{"input": "a"}\n{"input": \n', ":2: JSON"),
        ('{"input": " "}\n', ":1: input: empty"),
    ],
)
def test_a_faulty_row_is_named(
    expert: Path, tmp_path: Path, lines: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "inputs.jsonl"
    path.write_text(lines)
    assert main([str(expert), str(path)]) == 2
    assert f"error: {path}{message}" in capsys.readouterr().err


def test_an_input_that_does_not_fit_is_named(
    expert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(expert), "short", "word " * 3000]) == 2
    assert "error: text 2: " in capsys.readouterr().err


def test_an_input_that_does_not_fit_another_systems_prompt_is_named(
    expert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _as_long_as_fits(expert)
    assert _rows(capsys, str(expert), text)[0]["output"] in ("long", "short")
    for system, given in (("few_shot", text), ("few_shot_channel", "word " * 3000)):
        assert main([str(expert), given, "--system", system]) == 2
        assert "error: text 1: with its prompt" in capsys.readouterr().err
    assert main([str(expert), "word " * 3000, "--system", "majority"]) == 0


def _as_long_as_fits(folder: Path) -> str:
    expert = Expert.load(folder)
    answerer = expert.attach(tiny.llm(), folder)
    text = ""
    while True:
        longer = f"{text} word".strip()
        prompt = answerer.prompts.answer(longer, expert.way.asking)
        if answerer.count(prompt) + answerer.budget(longer) >= 1024:
            return text
        text = longer


def test_an_empty_line_of_standard_input_gets_an_empty_answer(
    expert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", typed("one teal\n\none red\n"))
    rows = _rows(capsys, str(expert), "-")
    assert [row["input"] for row in rows] == ["one teal", "", "one red"]
    assert [bool(row["output"]) for row in rows] == [True, False, True]
    monkeypatch.setattr("sys.stdin", typed(" \n"))
    assert main([str(expert), "-"]) == 2
    assert "standard input: no text in it" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", typed("Café".encode("latin-1")))
    assert main([str(expert), "-"]) == 2
    assert "standard input: not UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)
    assert main([str(expert), "-"]) == 2
    assert "standard input: it is closed" in capsys.readouterr().err


def test_output_that_takes_nothing_more(
    expert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(OSError), open("/dev/full", "w") as full:  # closing it fails once more
        monkeypatch.setattr("sys.stdout", full)
        assert main([str(expert), "one teal"]) == 2
    assert "error: standard output: No space left" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdout", None)
    assert main([str(expert), "one teal"]) == 0


def test_a_sentence_may_end_like_a_file(expert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [row] = _rows(capsys, str(expert), "look into rows.jsonl")
    assert row["input"] == "look into rows.jsonl"
    for name in ("rows.jsonl", "rows.txt", "ROWS.JSON"):
        assert main([str(expert), name]) == 2
        assert f"{name}: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("metrics", [None, {"recommended": None, "systems": []}])
def test_a_run_that_recommends_nothing_says_so(
    expert: Path,
    tmp_path: Path,
    metrics: dict[str, object] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(expert, out)
    (out / "metrics.json").unlink()
    if metrics is not None:
        (out / "metrics.json").write_text(json.dumps(metrics))
    assert main([str(out), "one teal", "--system", "recommended"]) == 2
    assert f"{out}: recommends nothing" in capsys.readouterr().err
    assert main([str(out), "one teal"]) == 0
    assert "note:" not in capsys.readouterr().err


def test_an_unknown_system_gets_a_hint(expert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(expert), "x", "--system", "expret"]) == 2
    assert "--system expret: no such system (did you mean expert" in capsys.readouterr().err


def test_another_model_is_refused(
    expert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_models.make(
        "smollm2", tmp_path, seed=1, vocab_size=tiny.VOCAB, max_position_embeddings=1024
    )
    tiny_tokenizers.byte_level_folder(other, vocab_size=tiny.VOCAB)
    assert main([str(expert), "x", "--model", str(other)]) == 2
    assert "the expert belongs to the model" in capsys.readouterr().err


def test_folders_without_an_expert_say_what_is_missing(
    expert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none"), "x"]) == 2
    assert "none: no such run folder" in capsys.readouterr().err
    shutil.copytree(expert, tmp_path / "run")
    (tmp_path / "run" / "expert.json").unlink()
    assert main([str(tmp_path / "run"), "x"]) == 2
    said = capsys.readouterr().err
    assert "there is no expert in it yet; finish it with: python -m selfguide.run" in said
    (tmp_path / "run" / "manifest.json").unlink()
    assert main([str(tmp_path / "run"), "x"]) == 2
    assert "it is no run's folder" in capsys.readouterr().err


def test_a_text_file_is_a_text_a_line(
    expert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("one mauve\n\none tan\n", encoding="utf-8")
    rows = _rows(capsys, str(expert), str(tmp_path / "mine.txt"))
    assert [row["input"] for row in rows] == ["one mauve", "", "one tan"]
    assert [bool(row["output"]) for row in rows] == [True, False, True]


def test_many_texts_are_answered_a_part_at_a_time(
    expert: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["one tan", "", "", "one mauve", "one beige"]
    (tmp_path / "mine.txt").write_text("\n".join(texts), encoding="utf-8")
    given = str(expert), str(tmp_path / "mine.txt"), "--system"
    systems = ("expert", "few_shot", "few_shot_both")
    whole = [_rows(capsys, *given, system) for system in systems]
    monkeypatch.setattr("selfguide.predict._AT_ONCE", 2)  # the second part has nothing to answer
    assert [_rows(capsys, *given, system) for system in systems] == whole


def test_an_unknown_device_is_one_line(expert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(expert), "one tan", "--device", "gpu"]) == 2
    assert "device gpu: there is no such device; use cpu or cuda" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["metrics.json", "manifest.json"])
def test_a_damaged_folder_says_which_file(
    expert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(expert, folder)
    (folder / broken).write_text("{")
    assert main([str(folder), "one tan", "--system", "few_shot"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {folder / broken}: ")
