"""The doctor's report, and what is said where other distributions' packages stand in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import cpu
from selfguide import doctor
from selfguide.neighbours import conflicts

ROOT = Path(__file__).resolve().parents[2]


def run(code: list[str], path: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python in `path`, whose packages come before ours."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *code], cwd=path, env=environment, capture_output=True, text=True
    )


def foreign(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("def get_kernel(): ...\n", encoding="utf-8")
    return folder


def test_report_names_what_a_run_would_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["torch"] == torch.__version__
    assert report["conflicts"] == []
    assert report["backends"]["cpu"].startswith("active" if cpu.native else "not built")
    assert report["dtype"]["cpu"] in ("bfloat16", "float32")
    assert report["devices"][0].startswith("cpu")
    assert report["threads"].startswith(str(torch.get_num_threads()))


def test_a_reader_that_has_seen_enough_is_no_trouble() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        command = [sys.executable, "-m", "selfguide.doctor"]
        ended = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_text_has_every_finding_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]
    expected = "selfguide python torch devices backends threads dtype memory models"
    assert names == expected.split()


def test_says_why_the_kernels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "native", None)
    monkeypatch.setattr(cpu, "status", "not built: install a C++ compiler")
    assert doctor.examine()["backends"]["cpu"].startswith("not built: install a C++ compiler")


def test_says_what_the_cpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "native", object())
    monkeypatch.setattr(cpu, "candidates", lambda: ["_avx2", "_portable"])
    assert "lacks AVX512-BF16" in doctor.examine()["backends"]["cpu"]


def test_says_whether_the_default_model_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFGUIDE_CACHE", str(tmp_path))
    assert "will be fetched" in doctor.examine()["models"]
    (tmp_path / doctor.DEFAULT_MODEL).mkdir()
    assert "is cached" in doctor.examine()["models"]


@pytest.mark.parametrize("name", ["kernels", "engine"])
def test_one_line_about_a_package_that_shadows_ours(tmp_path: Path, name: str) -> None:
    result = run(["-m", "selfguide.doctor"], foreign(tmp_path, name))
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("conflicts")]
    assert f"`import {name}` finds {tmp_path / name}" in line
    assert result.stderr == ""


def test_engine_refuses_foreign_kernels(tmp_path: Path) -> None:
    result = run(["-c", "import engine"], foreign(tmp_path, "kernels"))
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: `import kernels` finds ")
    assert "not selfguide's package" in last


def test_one_line_about_a_distribution_that_owns_the_same_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owners = {"kernels": ["selfguide", "kernels"], "engine": ["selfguide"]}
    monkeypatch.setattr("selfguide.neighbours.packages_distributions", lambda: owners)
    (line,) = conflicts(ROOT)
    assert line.startswith("kernels also installs a package `kernels` here: ")
