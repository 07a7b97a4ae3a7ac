"""The verdict: what it says and what it recommends."""

from __future__ import annotations

from typing import Any

import pytest

from selfguide.method.ground import Source
from selfguide.method.verdict import judge

ROWS = 40


def entry(key: str, right: int, group: str, tokens: int | None) -> dict[str, Any]:
    return {
        "key": key,
        "title": key.title(),
        "group": group,
        "how": f"does {key}",
        "score": 100 * right / ROWS,
        "prompt_tokens": tokens,
    }


def judged(
    expert: int | None, few_shot: int, majority: int, source: Source = "eval_file"
) -> dict[str, Any]:
    given = {"majority": majority, "few_shot": few_shot}
    entries = [
        entry("majority", majority, "floor", None),
        entry("few_shot", few_shot, "untuned", 120),
    ]
    if expert is not None:
        given |= {"expert_greedy": ROWS, "expert": expert}
        entries.append(entry("expert_greedy", ROWS, "tuned", 30))
        entries.append(entry("expert", expert, "tuned", 30))
    points = {key: [100.0] * n + [0.0] * (ROWS - n) for key, n in given.items()}
    return judge(entries, points, "exact_match", source, 0)


def test_a_clear_win() -> None:
    found = judged(36, 20, 18)
    assert found["recommended"] == found["expert"] == "expert"
    assert found["best_baseline"] == "few_shot"
    assert found["difference"]["points"] == 40.0
    assert found["verdict"].startswith(
        "The expert wins: 90.0 exact match against 50.0 of the best baseline (Few_Shot) on 40 rows:"
        " +40.0 points, 95 % interval +25.0 to +55.0, p < 0.001; "
    )
    assert "30 prompt tokens instead of 120" in found["verdict"]


def test_ahead_within_noise() -> None:
    found = judged(22, 20, 18)
    assert found["recommended"] == "expert"
    assert found["verdict"].startswith("The expert is ahead, but within noise: 55.0")
    assert "p = 0.5" in found["verdict"]


@pytest.mark.parametrize("expert", [20, 12])
def test_no_gain(expert: int) -> None:
    found = judged(expert, 20, 18)
    assert found["recommended"] == "few_shot"
    assert found["verdict"].startswith(f"Tuning did not win: {100 * expert / ROWS:.1f}")
    assert found["verdict"].endswith(
        "Use Few_Shot instead (--system few_shot of selfguide.predict): does few_shot."
    )


def test_nothing_beats_the_floor() -> None:
    found = judged(20, 18, 24)
    assert found["recommended"] == found["best_baseline"] == "majority"
    assert found["verdict"].startswith("Nothing here works: 50.0")
    assert "try a larger model" in found["verdict"]


@pytest.mark.parametrize(
    ("expert", "verdict"),
    [(36, "The expert has learnt"), (19, "Too few held-out pairs"), (12, "The expert has not")],
)
def test_agreement_is_no_gain(expert: int, verdict: str) -> None:
    found = judged(expert, 40, 18, "held_out_synthetic")
    assert found["recommended"] == ("expert" if expert == 36 else None)
    assert found["verdict"].startswith(verdict)
    assert "cannot be told without an eval_file" in found["verdict"]


@pytest.mark.parametrize(("expert", "floor"), [(4, 2), (2, 2), (0, 4)])
def test_a_few_pairs_tell_nothing(expert: int, floor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.selfguide.method.test_verdict.ROWS", 4)
    found = judged(expert, 4, floor, "held_out_synthetic")
    assert found["recommended"] is None
    assert found["verdict"].startswith("Too few held-out pairs to tell")


def test_no_expert_to_judge() -> None:
    found = judged(None, 20, 18, "leave_one_out")
    assert (found["expert"], found["difference"]) == (None, None)
    assert found["recommended"] is None
    assert "give an eval_file" in found["verdict"]
