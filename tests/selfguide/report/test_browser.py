"""The report in a real browser: silent, offline, fitting a phone, its table at work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from selfguide.report import write_report
from tests.selfguide.report import run_folders
from tests.selfguide.report.browser import chromium

PHONE, DESK = (380, 800), (1180, 900)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    kinds = (run_folders.classification, run_folders.free_text, run_folders.too_few)
    made = {kind.__name__: write_report(kind(folder / kind.__name__)) for kind in kinds}
    made["hostile"] = write_report(run_folders.hostile(folder / "hostile"))
    return made


class Visit:
    """A page that notes what it logs and what it asks of the network."""

    def __init__(self, browser: Browser, size: tuple[int, int], *, scripts: bool = True) -> None:
        self.page: Page = browser.new_page(
            viewport={"width": size[0], "height": size[1]}, java_script_enabled=scripts
        )
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path) -> Page:
        self.page.goto(path.as_uri())
        return self.page

    def visible_rows(self) -> list[str]:
        rows = self.page.locator("#rows tbody tr:visible")
        return rows.all_inner_texts()


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
@pytest.mark.parametrize("kind", ["classification", "free_text", "too_few", "hostile"])
def test_page_is_silent_offline_and_fits(
    browser: Browser, reports: dict[str, Path], kind: str, size: tuple[int, int]
) -> None:
    visit = Visit(browser, size)
    page = visit.open(reports[kind])
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert visit.complaints == []
    assert visit.requests == [reports[kind].as_uri()]
    page.close()


def test_table_is_searched_filtered_and_paged(browser: Browser, reports: dict[str, Path]) -> None:
    visit = Visit(browser, DESK)
    page = visit.open(reports["classification"])
    ledger = run_folders.read_lines(reports["classification"].parent / "candidates.jsonl")
    assert len(visit.visible_rows()) == 25
    assert page.inner_text("#found") == f"{len(ledger)} of {len(ledger)}"

    page.select_option("#by-filter", "noise")
    noise = [row for row in ledger if row["filter"] == "noise"]
    assert page.inner_text("#found") == f"{len(noise)} of {len(ledger)}"
    assert all("noise" in row for row in visit.visible_rows())

    page.select_option("#by-filter", "kept")
    page.select_option("#by-label", "mixed")
    kept = [row for row in ledger if row["kept"] and row["output"] == "mixed"]
    assert page.inner_text("#found") == f"{len(kept)} of {len(ledger)}"

    page.fill("#search", "Garden awful")
    found = [row for row in kept if {"garden", "awful"} <= set(_words(row["input"]))]
    assert 0 < len(found) < len(kept)
    assert len(visit.visible_rows()) == len(found)

    page.fill("#search", "")
    page.select_option("#by-filter", "")
    page.select_option("#by-label", "")
    page.click("#next")
    assert visit.visible_rows()[0].startswith("25")
    page.click("#previous")
    assert page.is_disabled("#previous")
    page.close()


def _words(text: str) -> list[str]:
    return text.lower().replace(",", " ").replace(".", " ").split()


def test_page_reads_without_scripts(browser: Browser, reports: dict[str, Path]) -> None:
    visit = Visit(browser, PHONE, scripts=False)
    page = visit.open(reports["classification"])
    assert len(visit.visible_rows()) == 240
    assert not page.is_visible("#search")
    page.close()


def test_dark_is_dark(browser: Browser, reports: dict[str, Path]) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(reports["classification"].as_uri())
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
        colours[scheme] = sum(int(part) for part in shade[4:-1].split(","))
        page.close()
    assert colours["dark"] < 150 < 600 < colours["light"]


def test_large_ledger_pages_quickly(browser: Browser, tmp_path: Path) -> None:
    visit = Visit(browser, DESK)
    page = visit.open(write_report(run_folders.classification(tmp_path, candidates=5000)))
    assert page.inner_text("#page") == "1 / 200"
    took = page.evaluate(
        "() => { const start = performance.now(); "
        "document.getElementById('next').click(); return performance.now() - start }"
    )
    assert took < 1000
    page.close()
