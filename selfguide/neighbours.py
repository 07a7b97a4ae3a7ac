"""Other distributions whose packages are named like ours (Hugging Face publishes a `kernels`)."""

from __future__ import annotations

from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

_OURS = "selfguide"
_SHARED = ("engine", "kernels")


def conflicts(home: Path) -> list[str]:
    """One line for each package of ours that another distribution shadows or also installs.

    Args:
        home: the folder that our packages lie in.
    """
    lines = []
    owners = packages_distributions()
    for name in _SHARED:
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        others = sorted(set(owners.get(name, [])) - {_OURS})
        remedy = "install selfguide in a virtual environment of its own"
        if found != home / name / "__init__.py":
            lines.append(f"`import {name}` finds {found}, not selfguide's package: {remedy}")
        elif others:
            lines.append(f"{', '.join(others)} also installs a package `{name}` here: {remedy}")
    return lines
