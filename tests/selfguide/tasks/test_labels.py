"""Finding labels: the instructions here are ours, of the kinds that people write."""

from __future__ import annotations

import pytest

from selfguide.tasks import Example
from selfguide.tasks.labels import find_labels


def found(instruction: str, *outputs: str, wrong: tuple[str, ...] = ()) -> dict[str, str]:
    examples = [Example(f"input {i}", output) for i, output in enumerate(outputs)]
    return find_labels(instruction, examples, wrong)


@pytest.mark.parametrize(
    ("instruction", "outputs", "labels"),
    [
        ("Say 'yes' if the dish is vegan. Otherwise say 'no'.", ["yes", "yes"], ["yes", "no"]),
        (
            "Answer yes if the note names a day, and no if it does not.",
            ["Yes."] * 2,
            ["Yes.", "No."],
        ),
        (
            "Is the mail urgent? Answer urgent or normal.",
            ["urgent", "normal"],
            ["urgent", "normal"],
        ),
        ("Is the tone warm, cold or neutral?", ["warm", "cold"], ["warm", "cold", "neutral"]),
        ("Choose one: WARM, COLD, or NEUTRAL.", ["Warm", "Cold"], ["Warm", "Cold", "Neutral"]),
        (
            'Give the topic: "garden work", "home", or "travel by sea".',
            ["home", "garden work"],
            ["home", "garden work", "travel by sea"],
        ),
        (
            "Sort the news into one of: sports, world news, science.",
            ["sports", "science"],
            ["sports", "science", "world news"],
        ),
        ("Label the joke (funny/flat/rude).", ["funny", "flat"], ["funny", "flat", "rude"]),
        (
            "Give the mood:\n- happy\n- sad: for low spirits\n- angry\n",
            ["happy", "sad"],
            ["happy", "sad", "angry"],
        ),
        (
            "Decide whether the note backs or attacks the plan.",
            ["back", "attack"],
            ["back", "attack"],
        ),
        (
            "Sections: Home, Sci/Tech, Garden. Which one has it?",
            ["Home", "Garden"],
            ["Home", "Garden", "Sci/Tech"],
        ),
        ("Write 'same' if they match, 'other' if not.", ["same", "same"], ["same", "other"]),
        ("They agree ('YES') or clash ('NO WAY').", ["YES", "YES"], ["YES", "NO WAY"]),
        ("判断天气：晴天或雨天", ["晴天", "雨天"], ["晴天", "雨天"]),
        ("Rate the meal from 1 to 4.", ["2", "4"], ["2", "4", "1", "3"]),
        ("Which of the texts is older? Answer 1,2, or 3.", ["3", "1"], ["3", "1", "2"]),
        ("What is the weather like?", ["rain", "sun", "sun", "rain"], ["rain", "sun"]),
        ("Ist der Satz höflich? Antworte „ja“ oder 'nein'.", ["ja", "nein"], ["ja", "nein"]),
    ],
)
def test_labels_are_found(instruction: str, outputs: list[str], labels: list[str]) -> None:
    assert list(found(instruction, *outputs)) == labels


@pytest.mark.parametrize(
    ("instruction", "outputs"),
    [
        ("Find the word that both lines share, such as 'boat' and 'boats'.", ["boat", "tree"]),
        ("Write the capital of the country.", ["Lima", "Oslo", "Oslo"]),
        ("Rewrite the order politely.", ["Please sit.", "Please wait here."]),
        ("Say 'yes' if it rains.", ["yes", "yes"]),
        ("Count the 2 or 3 longest words' letters.", ["12", "9"]),
        ("Give the country's code, e.g. pe, no or fr.", ["pe", "fr"]),
        ("Mark each a in the text.", ["a", "b"]),
        ("Use true and complete sentences. Is it true?", ["true", "true"]),
        ("Summarise good and bad sides.", ["good and bad sides of the long road home", "bad"]),
    ],
)
def test_in_doubt_a_task_is_free_text(instruction: str, outputs: list[str]) -> None:
    assert found(instruction, *outputs) == {}


def test_what_merely_stands_near_a_label_is_none() -> None:
    assert list(
        found(
            "Answer 'true' if the sentence contains 'because' and is true and complete, else "
            "'false'. Write true or false and nothing else, using \"good sense\".",
            "true",
            "false",
        )
    ) == ["true", "false"]


def test_mistakes_show_labels_that_the_instruction_names() -> None:
    instruction = "A claim is sound when it holds, and shaky when nobody knows. Is it sound?"
    labels = found(instruction, "sound", "sound", wrong=("shaky", "sounds", "I do not know"))
    assert list(labels) == ["sound", "shaky"]


@pytest.mark.parametrize(
    ("instruction", "meanings"),
    [
        ("Answer A for agreement and D for dispute.", ["agreement", "dispute"]),
        ("Answer A (agreement) or D (dispute).", ["agreement", "dispute"]),
        ("Is it agreement (A) or dispute (D)?", ["agreement", "dispute"]),
        (
            "They match (agreement) or clash (dispute). Write the letters A and D respectively.",
            ["agreement", "dispute"],
        ),
        ("Answer A or D.", ["A", "D"]),
        ("Answer A for agreement, or else D.", ["A", "D"]),
    ],
)
def test_meanings_of_short_labels(instruction: str, meanings: list[str]) -> None:
    assert found(instruction, "A", "D") == dict(zip("AD", meanings, strict=True))


def test_a_long_label_means_itself_without_punctuation() -> None:
    assert found("Answer yes or no.", "Yes.", "No.") == {"Yes.": "Yes", "No.": "No"}
