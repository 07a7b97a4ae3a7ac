"""What a run prints at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfguide.folder.run_folder import RunFolder
from selfguide.result import show_result


def _metrics(recommended: str | None) -> dict[str, Any]:
    score = {"score": 50.0, "low": 40.0, "high": 60.0}
    groups = {"majority": "floor", "few_shot": "untuned", "expert": "tuned"}
    systems = [{"key": key, "title": key, "group": group, **score} for key, group in groups.items()]
    return {
        "metric": "exact_match",
        "eval": {"rows": 6},
        "systems": systems,
        "expert": "expert",
        "recommended": recommended,
        "verdict": "So it is.",
    }


@pytest.mark.parametrize(
    ("recommended", "command"),
    [
        ("expert", 'predict runs/x "..."'),
        ("few_shot", 'predict runs/x --system few_shot "..."'),
        (None, 'predict runs/x "..."'),
    ],
)
def test_the_command_that_uses_what_did_best_is_shown(
    recommended: str | None, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_result(_metrics(recommended), RunFolder(Path("runs/x")))
    assert f"python -m selfguide.{command}" in capsys.readouterr().out


def test_where_nothing_helps_there_is_nothing_to_use(capsys: pytest.CaptureFixture[str]) -> None:
    show_result(_metrics("majority"), RunFolder(Path("runs/x")))
    shown = capsys.readouterr().out
    assert "runs/x/report.html" in shown
    assert "predict" not in shown
