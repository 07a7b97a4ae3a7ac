"""Native task files, what is said about them on the command line, and the checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfguide.errors import UserError
from selfguide.tasks import EvalRow, Example
from selfguide.tasks.load import load_task
from tests.selfguide.tasks.files import EXAMPLES, native, write

YAML = """\
name: guests
instruction: |
  Is the guest pleased?
  Answer in one word.
examples:
  - {input: "  The tea was lovely. ", output: no}
  - input: My room had no window.
    output: 1.0
labels: {no: not at all, 1.0: very much}
stop: "\\n\\n"
epochs: 5
lr: 1e-4
limit: null
"""


def test_yaml_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + YAML.replace("\n", "\r\n").encode())
    loaded = load_task(path)
    task = loaded.task
    assert task.name == "guests"
    assert task.instruction == "Is the guest pleased?\nAnswer in one word."
    assert task.examples[0] == Example("The tea was lovely.", "no")
    assert dict(task.labels) == {"no": "not at all", "1.0": "very much"}
    assert task.metric == "exact_match"
    assert task.stop == ("\n\n",)
    assert loaded.settings == {"epochs": "5", "lr": "1e-4", "limit": "null"}
    assert loaded.notes == ()


def test_json_scalars_are_text(tmp_path: Path) -> None:
    examples = [{"input": 1.50, "output": True}, {"input": "2", "output": 7}]
    task = load_task(native(tmp_path, examples=examples, labels=[True, 7])).task
    assert task.examples == (Example("1.5", "true"), Example("2", "7"))
    assert list(task.labels) == ["true", "7"]
    assert task.name == "task"


def test_files_beside_the_task(tmp_path: Path) -> None:
    write(
        tmp_path / "eval.jsonl",
        {"input": "The bed was soft.", "output": "Good."},
        "",
        {"input": "Too loud.", "outputs": ["bad", "awful"]},
        {"input": "The tea was lovely.", "output": "good"},
    )
    write(tmp_path / "own.txt", "So-so.", "", "Too loud.", "So-so.", " Fine. ")
    path = native(tmp_path, labels=["good", "bad"], eval_file="eval.jsonl", inputs_file="own.txt")
    loaded = load_task(path)
    assert loaded.task.eval_rows == (
        EvalRow("The bed was soft.", ("good",)),
        EvalRow("Too loud.", ("bad", "awful")),
    )
    assert loaded.task.inputs == ("So-so.", "Fine.")
    assert any("1 rows have an example's input" in note for note in loaded.notes)
    assert any("1 inputs are among" in note for note in loaded.notes)
    assert any("1 inputs repeat earlier ones" in note for note in loaded.notes)


def test_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere / "rows.jsonl", {"input": "Cold.", "output": "bad"})
    monkeypatch.chdir(elsewhere)
    path = native(tmp_path, labels=["x", "y"], metric="rouge_l", name="a")
    overrides = {
        "labels": "good, bad",
        "eval_file": "rows.jsonl",
        "name": "b",
        "metric": "exact_match",
        "instruction": "Good or bad?",
        "stop": "\\n",
    }
    loaded = load_task(path, overrides)
    task = loaded.task
    assert (task.name, task.instruction, task.metric) == ("b", "Good or bad?", "exact_match")
    assert list(task.labels) == ["good", "bad"]
    assert task.stop == ("\n",)
    assert len(task.eval_rows) == 1


@pytest.mark.parametrize("overrides", [{"labels": []}, {"metric": "rouge_l"}])
def test_free_text_can_be_forced(tmp_path: Path, overrides: dict[str, Any]) -> None:
    path = native(tmp_path, instruction="Answer good or bad.")
    found = load_task(path)
    assert list(found.task.labels) == ["good", "bad"]
    assert any("good, bad" in note for note in found.notes)
    assert not load_task(path, overrides).task.is_classification


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"instruction": None}, "task.json: instruction is missing"),
        ({"instruction": " "}, "task.json: instruction: empty"),
        ({"instruction": ["a"]}, "task.json: instruction: expected text, got a list"),
        ({"examples": None}, "task.json: examples is missing"),
        ({"examples": "none"}, "task.json: examples: expected a list"),
        ({"examples": EXAMPLES[:1]}, "task.json: examples: 1 of them; give 2 to 10"),
        ({"examples": EXAMPLES * 6}, "task.json: examples: 12 of them; give 2 to 10"),
        ({"examples": [*EXAMPLES, {"input": "x"}]}, "item 3: output: expected text, got nothing"),
        ({"examples": [*EXAMPLES, {"input": "x", "output": {"a": 1}}]}, "meant as text in quotes"),
        ({"examples": [*EXAMPLES, {"input": "x", "ouput": "y"}]}, "did you mean output?"),
        (
            {"examples": [*EXAMPLES, {"input": " My room had no window.", "output": "good"}]},
            "item 3 has the same input as item 2",
        ),
        ({"labels": ["good", "poor"]}, "item 2: output 'bad' is none of the labels good, poor"),
        ({"labels": ["good"]}, "labels: one label leaves nothing to choose"),
        ({"labels": ["good", "Good."]}, "labels: good and Good. differ only in case"),
        ({"labels": ["good", "bad", "bad"]}, "labels: a label stands twice"),
        ({"labels": 3}, "labels: one label leaves nothing to choose"),
        ({"labels": [["good"]]}, "task.json: labels: expected text, got a list"),
        ({"metric": "exactmatch"}, "metric: exactmatch is none of exact_match, rouge_l (did you"),
        ({"labels": ["good", "bad"], "metric": "rouge_l"}, "metric: rouge_l is for free text"),
        ({"instructon": "x"}, "unknown key instructon (did you mean instruction?)"),
        ({"epoch": 3}, "unknown key epoch (did you mean epochs?)"),
        ({"name": "a/b c"}, "name: 'a/b c' cannot name a folder"),
        ({"name": ".."}, "write task"),
        ({"stop": ""}, "stop: expected text or a list of texts"),
        ({"eval_file": "none.jsonl"}, "none.jsonl': no such file"),
        ({"eval_file": "."}, "a folder, not a file"),
        ({"eval_file": "a\0b"}, "task.json: eval_file: "),
        ({"eval_file": "~nobody-of-that-name/a"}, "task.json: eval_file: ~nobody-of-that-name/a"),
        ({"inputs_file": "task.json"}, "task.json: expected a list"),
        (
            {"labels": ["good", "fair, but dear"]},
            "item 2: output 'bad' is none of the labels good, 'fair, but dear'",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = native(tmp_path, **keys)
    with pytest.raises(UserError) as caught:
        load_task(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "eval.jsonl: no row"),
        (["{", "}"], "eval.jsonl:1: JSON"),
        (
            [{"input": "a", "output": "good"}, {"input": "b"}],
            "eval.jsonl:2: needs input and output",
        ),
        ([{"input": "a", "outputs": []}], "eval.jsonl:1: outputs: empty"),
        ([{"input": "", "output": "good"}], "eval.jsonl:1: input: empty"),
        (["[1]"], "eval.jsonl:1: expected keys and values"),
        ([{"input": "a", "output": "fair"}], "eval.jsonl:1: output 'fair' is none of the labels"),
        ([EXAMPLES[0]], "eval_file: every row has an example's input; give other rows"),
    ],
)
def test_mistakes_in_evaluation_files(tmp_path: Path, lines: list[Any], message: str) -> None:
    write(tmp_path / "eval.jsonl", *lines)
    path = native(tmp_path, labels=["good", "bad"], eval_file="eval.jsonl")
    with pytest.raises(UserError) as caught:
        load_task(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("instruction: Is it: good?\n", "task.yaml:1: YAML: mapping values are not allowed"),
        ('eval_file: "C:\\data"\n', "put text that contains \\ in single quotes"),
        ("name: a\nname: b\n", "task.yaml:2: YAML: key name stands twice"),
        ("name: [a\n", "task.yaml:2: YAML"),
        ('a: b\nname: "a\nb: c\n', "task.yaml:2: YAML: found unexpected end of stream"),
        ("[" * 5000, "task.yaml: YAML: nested too deeply"),
        ("", "expected a task's keys"),
        ("- 3\n", "task.yaml, item 1: expected keys and values, got text"),
    ],
)
def test_broken_yaml(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_task(path)
    assert message in str(caught.value)


def test_null_is_no_instruction(tmp_path: Path) -> None:
    path = write(tmp_path / "task.json", {"instruction": None, "examples": EXAMPLES})
    with pytest.raises(UserError, match="instruction is missing"):
        load_task(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"instruction": "a", "instruction": "b"}',
            "task.json: JSON: key instruction stands twice",
        ),
        ("[" * 100_000, "task.json: JSON: nested too deeply"),
    ],
)
def test_json_that_python_would_let_pass(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task(write(tmp_path / "task.json", text))
    assert str(caught.value).endswith(message)


def test_a_list_in_a_file_of_lines(tmp_path: Path) -> None:
    write(tmp_path / "eval.jsonl", "[", json.dumps(EXAMPLES[0]), "]")
    with pytest.raises(UserError, match=r"eval\.jsonl:1: JSON: .* holds one list \.json"):
        load_task(native(tmp_path, eval_file="eval.jsonl"))


def test_inputs_in_a_json_list(tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text(json.dumps([{"input": "It was dark."}, "Lovely."]))
    task = load_task(native(tmp_path, inputs_file="inputs.json")).task
    assert task.inputs == ("It was dark.", "Lovely.")


def test_a_mistake_is_where_it_was_made(tmp_path: Path) -> None:
    path = native(tmp_path)
    for key, value in {"labels": "good", "metric": "f1", "name": "a/b"}.items():
        with pytest.raises(UserError, match=rf"^command line: {key}: "):
            load_task(path, {key: value})
        with pytest.raises(UserError, match=rf"^run\.yaml: {key}: "):
            load_task(path, {key: value}, {key: "run.yaml"})


def test_files_that_are_no_task(tmp_path: Path) -> None:
    latin = tmp_path / "task.yaml"
    latin.write_bytes("name: a\ninstruction: Café?\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"task\.yaml:2: not UTF-8"):
        load_task(latin)
    with pytest.raises(UserError, match=r"a task is a .yaml"):
        load_task(tmp_path / "task.txt")
    with pytest.raises(UserError, match=r"command line: unknown key exmples"):
        load_task(native(tmp_path), {"exmples": "x"})


@pytest.mark.parametrize("blank", ["", " , "])
def test_labels_left_blank_are_no_free_text(tmp_path: Path, blank: str) -> None:
    with pytest.raises(UserError, match=r"labels: empty; list them, or write \[\]"):
        load_task(native(tmp_path, labels=blank))


def test_a_stop_within_an_output_is_refused_and_at_its_end_is_not(tmp_path: Path) -> None:
    examples = [{"input": "a", "output": "It is. So."}, {"input": "b", "output": "No."}]
    with pytest.raises(UserError, match=r"stop: '\.' stands within the output of examples, item 1"):
        load_task(native(tmp_path, examples=examples, stop=".", labels=[]))
    examples[0]["output"] = "So."
    task = load_task(native(tmp_path, examples=examples, stop=".", labels=[])).task
    assert task.stop == (".",)


def test_an_overlong_name_is_told_how_long_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="up to 80 letters"):
        load_task(native(tmp_path, name="n" * 81))
