"""The formats of others: Natural Instructions, Alpaca, chats, prompt and completion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfguide.errors import UserError
from selfguide.tasks import EvalRow, Example
from selfguide.tasks.load import load_task
from tests.selfguide.tasks.files import write

DEFINITION = "Does the shop sell the thing? Answer 'yes' or 'no'."


def natural_instructions(folder: Path, **keys: Any) -> Path:
    document = {
        "Definition": [DEFINITION],
        "Positive Examples": [
            {"input": "Bakery: bread", "output": "Yes.", "explanation": "It does."},
            {"input": "Bakery: nails", "output": "No.", "explanation": "It does not."},
            {"input": "Bakery: bread", "output": "Yes."},
        ],
        "Negative Examples": [{"input": "Bakery: cake", "output": "", "explanation": "Empty."}],
        "Instances": [
            {"id": "1", "input": "Florist: roses", "output": ["yes", "Yes."]},
            {"id": "2", "input": "Florist: milk", "output": ["no", "never"]},
            {"id": "3", "input": "Florist: tea", "output": [""]},
            {"id": "4", "input": "Bakery: bread", "output": ["Yes."]},
            {"id": "5", "input": "Florist: soil", "output": "perhaps"},
        ],
        **keys,
    }
    return write(folder / "shop task.json", document)


def test_natural_instructions(tmp_path: Path) -> None:
    loaded = load_task(natural_instructions(tmp_path))
    task = loaded.task
    assert (task.name, task.instruction, task.metric) == ("shop-task", DEFINITION, "exact_match")
    assert task.examples == (Example("Bakery: bread", "Yes."), Example("Bakery: nails", "No."))
    assert dict(task.labels) == {"Yes.": "Yes", "No.": "No"}
    assert task.eval_rows == (
        EvalRow("Florist: roses", ("Yes.",)),
        EvalRow("Florist: milk", ("No.", "never")),
        EvalRow("Florist: soil", ("perhaps",)),
    )
    notes = "\n".join(loaded.notes)
    assert "2 of 3 Positive Examples" in notes
    assert "1 instances have no output" in notes
    assert "Instances: 1 rows have an example's input" in notes
    assert "Instances, item 5: output 'perhaps' is none of the labels; 1 of 3 rows" in notes


def test_labels_do_not_come_from_evaluation_rows(tmp_path: Path) -> None:
    examples = [{"input": f"{i}", "output": "yes"} for i in range(3)]
    path = natural_instructions(tmp_path, **{"Positive Examples": examples, "Definition": "Is it?"})
    assert not load_task(path).task.labels


def test_at_most_ten_demonstrations(tmp_path: Path) -> None:
    examples = [{"input": f"{i}", "output": f"row of {i} letters"} for i in range(14)]
    task = load_task(natural_instructions(tmp_path, **{"Positive Examples": examples})).task
    assert [example.input for example in task.examples] == [str(i) for i in range(10)]


def alpaca(count: int, instruction: str = "Is it big or small?") -> list[dict[str, str]]:
    sizes = ["big"] * 4 + ["small"] * count
    return [
        {"instruction": instruction, "input": f"thing {i}", "output": sizes[i]}
        for i in range(count)
    ]


@pytest.mark.parametrize("lines", [False, True])
def test_alpaca_shows_each_label_among_the_examples(tmp_path: Path, lines: bool) -> None:
    rows = alpaca(8)
    name = "rows.jsonl" if lines else "rows.json"
    loaded = load_task(write(tmp_path / name, *(rows if lines else [rows])))
    task = loaded.task
    assert task.instruction == "Is it big or small?"
    assert {example.output for example in task.examples} == {"big", "small"}
    assert len(task.examples) == 3
    inputs = {example.input for example in task.examples} | {row.input for row in task.eval_rows}
    assert len(task.eval_rows) == 5
    assert len(inputs) == 8
    assert "3 of 8 rows are the examples" in loaded.notes[0]


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", *alpaca(6))
    assert len(load_task(path).task.eval_rows) == 3


def test_several_instructions_need_one_for_all(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Name a {thing}.", "input": "", "output": f"a {thing} called {i}"}
        for i, thing in enumerate(["fish", "bird", "tree", "river"])
    ]
    path = write(tmp_path / "rows.json", rows)
    with pytest.raises(
        UserError, match=r"item 2: another instruction than at .*item 1.*--instruct"
    ):
        load_task(path)
    task = load_task(path, {"instruction": "Do what is asked."}).task
    assert task.instruction == "Do what is asked."
    assert task.examples[0] == Example("Name a fish.", "a fish called 0")


def chat(question: str, answer: str, system: str | None = "Answer briefly.") -> dict[str, Any]:
    head = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*head, *turns]}


def test_chats(tmp_path: Path) -> None:
    rows = [chat(f"Where is number {i}?", f"On the left of door {i}.") for i in range(5)]
    rows[0]["messages"][1]["content"] = [{"type": "text", "text": "Where is number 0?"}]
    task = load_task(write(tmp_path / "chats.jsonl", *rows)).task
    assert task.instruction == "Answer briefly."
    assert task.examples[0] == Example("Where is number 0?", "On the left of door 0.")
    assert task.eval_rows[-1] == EvalRow("Where is number 4?", ("On the left of door 4.",))


def test_prompt_and_completion(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"prompt": f"Translate: word {i}\n", "completion": f" the long word {i}"} for i in range(4)
    ]
    path = write(tmp_path / "pairs.jsonl", *rows)
    with pytest.raises(UserError, match=r"pairs.jsonl:1: nothing says what to do.*--instruction"):
        load_task(path)
    task = load_task(path, {"instruction": "Translate:"}).task
    assert task.examples[0] == Example("word 0", "the long word 0")
    chats = [
        {
            "prompt": chat(f"q{i}", "")["messages"][:2],
            "completion": [chat("", f"a{i}")["messages"][2]],
        }
        for i in range(4)
    ]
    task = load_task(write(tmp_path / "chats.jsonl", *chats)).task
    assert (task.instruction, task.examples[1]) == ("Answer briefly.", Example("q1", "a1"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hi"}, "messages: expected a list, got text"),
        ({"messages": [{"role": "user", "content": "a"}]}, "one of assistant, got user"),
        ({"messages": [{"role": "user", "content": None}]}, "item 1: content: expected text"),
        (
            {"messages": [*chat("a", "b")["messages"], *chat("c", "d", None)["messages"]]},
            "got user, assistant, user, assistant",
        ),
        ({"prompt": "a", "completion": ""}, "rows.jsonl:1: completion: empty"),
        ({"text": "a"}, "rows.jsonl:1: needs input and output (or messages"),
        ({"instruction": "a", "output": ["b"]}, "rows.jsonl:1: output: expected text"),
    ],
)
def test_mistakes_in_rows(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task(write(tmp_path / "rows.jsonl", json.dumps(row)))
    assert message in str(caught.value)


def test_one_row_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of them; give 2 to 10"):
        load_task(write(tmp_path / "rows.json", alpaca(1)))


def test_evaluation_rows_leave_out_the_instruction_as_the_others_do(tmp_path: Path) -> None:
    said = "Is the guest pleased?"
    rows = [
        {"messages": [_turn("user", f"{said}\nThe tea was {w}."), _turn("assistant", answer)]}
        for w, answer in (("lovely", "good"), ("cold", "bad"), ("hot", "good"))
    ]
    task = write(tmp_path / "task.jsonl", *rows)
    alpaca = {"instruction": f"{said} The cake was dry.", "input": "", "output": "bad"}
    other = {"instruction": said, "input": "No soap.", "output": "bad"}
    write(tmp_path / "eval.jsonl", rows[0], alpaca, other)
    overrides = {"instruction": said, "eval_file": str(tmp_path / "eval.jsonl")}
    loaded = load_task(task, overrides)
    assert loaded.task.examples[0].input == "The tea was lovely."
    assert [row.input for row in loaded.task.eval_rows] == ["The cake was dry.", "No soap."]
    assert "1 rows have an example's input and are left out" in "\n".join(loaded.notes)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_no_word_of_an_input_is_cut(tmp_path: Path) -> None:
    rows = [{"input": f"Translated {w} are nice", "output": w} for w in ("books", "maps", "songs")]
    loaded = load_task(write(tmp_path / "t.jsonl", *rows), {"instruction": "Translate"})
    assert loaded.task.examples[0].input == "Translated books are nice"


def test_data_whose_only_spare_row_is_an_example_has_no_evaluation(tmp_path: Path) -> None:
    rows = [{"input": w, "output": w.upper()} for w in ("books", "maps", "songs", "books")]
    loaded = load_task(write(tmp_path / "t.jsonl", *rows), {"instruction": "In capitals."})
    assert loaded.task.eval_rows == ()
