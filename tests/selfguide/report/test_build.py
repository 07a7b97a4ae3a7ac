"""What the report says of finished, cut short, large and hostile runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from selfguide.errors import UserError
from selfguide.report import write_report
from tests.selfguide.report import run_folders


class Seen(HTMLParser):
    """The text and the tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.links = "", [], []
        self._inside = ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._inside = tag
        self.links += [value for name, value in attrs if name in ("href", "src", "action")]

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.text += data + " "


def seen(folder: Path) -> Seen:
    return Seen(write_report(folder).read_text(encoding="utf-8"))


def test_finished_classification(tmp_path: Path) -> None:
    page = seen(run_folders.classification(tmp_path))
    for part in (
        "Say whether the review is positive, negative or mixed.",
        "The expert wins.",
        "Exact match, 0 to 100, on 120 of 900 rows",
        "79.2",
        "Few-shot, bias removed",
        "annotation did not give back what the input was asked for",
        "Wrong before and after",
        "58 tokens with the expert and 214 with few-shot prompting: 3.7 times fewer",
        "The weights of step 18 were kept",
        "python -m selfguide.run examples/reviews/task.yaml",
        "9c1e0a7d55f2",
    ):
        assert part in page.text
    assert page.links == []


def test_scores_of_candidates_are_shown_as_probabilities(tmp_path: Path) -> None:
    folder = run_folders.classification(tmp_path, candidates=40)
    rows = run_folders.read_lines(folder / "candidates.jsonl")
    rows[0] |= {"output": "mixed", "scores": {"positive": -3.0, "negative": -3.0, "mixed": -1.0}}
    run_folders.write_lines(folder / "candidates.jsonl", rows)
    assert "mixed 0.79 · positive 0.11 · negative 0.11" in seen(folder).text


def test_synthetic_data_is_no_real_test(tmp_path: Path) -> None:
    page = seen(run_folders.free_text(tmp_path))
    assert "Measured on synthetic data, not on a real test: no eval_file was given" in page.text
    assert "The expert has not learnt what it was taught." in page.text
    assert "recommended" not in page.text
    assert "ROUGE-L" in page.text
    assert "Length of outputs" in page.text


def test_warnings_of_the_stages_and_edits_are_told(tmp_path: Path) -> None:
    folder = run_folders.classification(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["dataset_edited"] = True
    manifest["stages"]["synthesis"]["warnings"] = ["the annotator gave 'mixed' for all"]
    run_folders.write_json(folder / "manifest.json", manifest)
    text = seen(folder).text
    assert "the annotator gave 'mixed' for all" in text
    assert "edited by hand" in text


def test_too_few_pairs_tells_what_took_them(tmp_path: Path) -> None:
    page = seen(run_folders.too_few(tmp_path))
    assert "6 of 64 pairs wanted, and nothing trained on them." in page.text
    assert re.search(r"Most fell to “round trip”, \d+ of 240", page.text)
    assert "Scores" not in page.text
    assert "Every candidate" in page.text


def test_expert_that_nothing_can_judge(tmp_path: Path) -> None:
    folder = run_folders.classification(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics |= {"expert": None, "difference": None, "recommended": None}
    metrics["eval"] = {"source": "leave_one_out", "rows": 3, "note": "the examples themselves"}
    metrics["systems"] = [each for each in metrics["systems"] if each["group"] != "tuned"]
    metrics["verdict"] = "Nothing here can judge the expert: there is no eval_file."
    run_folders.write_json(folder / "metrics.json", metrics)
    text = seen(folder).text
    assert "Nothing here can judge the expert." in text
    assert "Measured on the task's own examples" in text


def test_barely_begun_run(tmp_path: Path) -> None:
    folder = run_folders.too_few(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    run_folders.write_json(folder / "manifest.json", {**manifest, "stages": {}})
    (folder / "candidates.jsonl").unlink()
    assert "0 inputs tried so far." in seen(folder).text


def test_text_of_a_run_stays_text(tmp_path: Path) -> None:
    page = seen(run_folders.hostile(tmp_path))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert "</script><script>alert(1)</script>" in page.text
    assert "שלום 👩‍🚀" in page.text
    assert "\0" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_large_ledger_stays_small(tmp_path: Path) -> None:
    folder = run_folders.classification(tmp_path, candidates=5000)
    rows = run_folders.read_lines(folder / "candidates.jsonl")
    for row in rows:
        row["input"] = "<é>" * 700
    run_folders.write_lines(folder / "candidates.jsonl", rows)
    path = write_report(folder)
    assert path.stat().st_size < 3_000_000
    page = Seen(path.read_text(encoding="utf-8"))
    assert page.tags.count("tr") > 5000
    assert "Texts are cut at" in page.text


def test_very_many_candidates_keep_the_kept_ones(tmp_path: Path) -> None:
    folder = run_folders.classification(tmp_path, candidates=9000)
    kept = sum(row["kept"] for row in run_folders.read_lines(folder / "candidates.jsonl"))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "The first 6000 of 9000" in page
    assert page.count('data-f="kept"') == kept


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        write_report(tmp_path)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    folder = run_folders.classification(tmp_path)
    with (folder / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"system": "exp')
    with pytest.raises(UserError, match=r"predictions\.jsonl:361"):
        write_report(folder)
    assert not (folder / "report.html").exists()
