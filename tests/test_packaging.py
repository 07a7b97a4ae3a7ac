"""The build, and that dependencies, pins and CI agree."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from kernels import cpu

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "kernels", "selfguide")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def listed(pattern: str) -> set[str]:
    """Distributions that pyproject.toml names in the list that `pattern` opens."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    opening = re.search(pattern, text, re.MULTILINE)
    assert opening, pattern
    body = text[opening.end() : text.index("\n]", opening.end())]
    return {normal(name) for name in re.findall(r'^ *"([\w.-]+)', body, re.MULTILINE)}


def imported() -> set[str]:
    """Top-level modules that our packages import, at the head of a file or inside a function."""
    names = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - set(PACKAGES)


def test_every_import_is_a_declared_dependency() -> None:
    owners = packages_distributions()
    declared = listed(r"^dependencies = \[") | {"triton"}
    for module in imported():
        distributions = {normal(name) for name in owners.get(module, [module])}
        assert distributions & declared, f"{module} is imported but not a dependency"


def test_every_dependency_of_the_tests_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {normal(name) for name in pins}
    assert listed(r"^dependencies = \[") | listed(r"^test = \[") <= pinned | {"triton"}
    assert pins["torch"] == "2.13.0"
    assert not any(name.startswith(("nvidia", "triton")) for name in pinned)


def test_kernels_are_built_where_a_compiler_is() -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler")
    assert cpu.native is not None, f"C++ kernels {cpu.status}; run: pip install -e ."


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_ci_runs_the_tests_as_the_readme_does() -> None:
    last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert last == 'python -m pytest "${together[@]}"'
    assert "bash .ci/run" in (ROOT / "README.md").read_text(encoding="utf-8")
