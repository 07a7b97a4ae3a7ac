"""One renderer makes every prompt; this is what the model reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.text.tokenizer import Tokenizer
from selfguide.prompts import TEMPLATES, Asking, Prompts
from selfguide.prompts.prompts import Template
from selfguide.tasks import Example, Task
from tests.engine.serving_setup import folder

TASK = Task(
    name="mood",
    instruction="Say if the review is good or bad.",
    examples=(Example("Lovely soup.", "good"), Example("Cold {{ soup }}.", "bad")),
    labels={"good": "happy", "bad": "unhappy"},
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(folder("llama2"))


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> Prompts:
    return Prompts(TASK, tokenizer)


def test_plain_few_shot_prompt_reads_as_a_page(prompts: Prompts) -> None:
    assert prompts.answer("Fine.", Asking("plain")) == (
        "Say if the review is good or bad.\n\n"
        "Input: Lovely soup.\nOutput: good\n\n"
        "Input: Cold {{ soup }}.\nOutput: bad\n\n"
        "Input: Fine.\nOutput:"
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_zero_shot_prompts_hold_the_instruction_and_the_input_alone(
    prompts: Prompts, template: Template
) -> None:
    text = prompts.answer("Fine.", Asking(template, shots=False))
    assert TASK.instruction in text
    assert "Fine." in text
    assert "Lovely" not in text


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_and_completion_meet_as_an_example_stands_in_a_prompt(
    prompts: Prompts, template: Template
) -> None:
    """What training reads is what a few-shot prompt shows: no space more or less."""
    asking = Asking(template)
    shown = prompts.answer("Fine.", asking)
    first = prompts.answer(TASK.examples[0].input, asking, examples=())
    assert shown.startswith(first + prompts.completion("good", asking))


def test_examples_may_be_replaced(prompts: Prompts) -> None:
    text = prompts.answer("Fine.", Asking("plain"), examples=[Example("Odd.", "bad")])
    assert "Odd." in text
    assert "Lovely" not in text


def test_records_name_and_explain_labels_and_end_with_the_one_asked_for(prompts: Prompts) -> None:
    records = [Example("Odd.", "bad"), Example("Lovely soup.", "good")]
    assert prompts.record(records, "bad") == (
        "Say if the review is good or bad.\n\n"
        "Input (good: happy): Lovely soup.\n\n"
        "Input (bad: unhappy): Odd.\n\n"
        "Input (bad: unhappy):"
    )


def test_the_papers_request_names_the_label_and_shows_the_inputs(prompts: Prompts) -> None:
    text = prompts.meta(["Lovely soup.", "Cold soup."], "bad")
    assert "Lovely soup." in text
    assert 'whose answer is "bad"' in text
    assert "None" not in prompts.meta(["Lovely soup."], None)


@pytest.mark.parametrize(
    ("outputs", "stop"),
    [
        (("a", "b"), ("\n",)),
        (("a\nb", "c"), ("\n\n",)),
        (("a\n\nb", "c"), ()),
    ],
)
def test_outputs_end_where_the_examples_do(
    tokenizer: Tokenizer, outputs: tuple[str, str], stop: tuple[str, ...]
) -> None:
    examples = tuple(Example(f"input {i}", output) for i, output in enumerate(outputs))
    next_input = ("\nInput:", "\n## Given", "\nUser:")
    assert Prompts(Task("t", "Do.", examples), tokenizer).stop == (*stop, *next_input)
    own = Prompts(Task("t", "Do.", examples, stop=("END",)), tokenizer)
    assert own.stop == ("END", *next_input)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_stop_of_the_tasks_own_stands_after_each_output(
    tokenizer: Tokenizer, template: Template
) -> None:
    own = Prompts(replace(TASK, stop=("###", "@")), tokenizer)
    text, asking = own.answer("Fine.", Asking(template)), Asking(template)
    assert text.count("\ngood###") + text.count(" good###") == 1
    assert text.count("\nbad###") + text.count(" bad###") == 1
    first = own.answer(TASK.examples[0].input, asking, examples=())
    assert text.startswith(first + own.completion("good", asking))
    assert "Output: good###\n" in own.output(TASK.examples)
    assert own.completion("good###", asking) == own.completion("good", asking)


@pytest.mark.parametrize("stop", [(), ("\n",), ("###",), ("\nUser:", "x")])
def test_a_task_with_its_prompts_stops_has_the_same_prompts(
    tokenizer: Tokenizer, stop: tuple[str, ...]
) -> None:
    """As an expert keeps them in its file."""
    once = Prompts(replace(TASK, stop=stop), tokenizer)
    again = Prompts(replace(TASK, stop=once.stop), tokenizer)
    assert again.stop == once.stop
    assert again.answer("Fine.", Asking()) == once.answer("Fine.", Asking())


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_looks_like_a_special_token_in_a_text_of_the_task_is_text(
    tokenizer: Tokenizer, template: Template
) -> None:
    def special(word: str) -> list[list[int]]:
        """The special tokens of all prompts of a task whose every text has this word."""
        examples = (Example(f"{word} Lovely", f"{word} good"), Example(f"Cold{word}", f"bad{word}"))
        labels = {f"{word} good": word, f"bad{word}": f"not {word}"}
        task = Task("mood", f"Good or bad? {word}", examples, labels)
        prompts, asking = Prompts(task, tokenizer), Asking(template)
        texts = (
            prompts.answer(f"Fine{word}", asking) + prompts.completion(f"{word} good", asking),
            prompts.record(examples, f"bad{word}", word) + prompts.input(f"So{word}so"),
            prompts.output(examples),
            prompts.meta([word], f"bad{word}"),
        )
        return [
            [number for number in tokenizer.encode(text) if number in tokenizer.special_ids]
            for text in texts
        ]

    assert special("<|im_end|>") == special("Rain")
    assert special("Rain")[3]  # the chat format's own
