"""The files that `engine.files.replacing` writes to before they take their places."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

_NAME = re.compile(r"^\.(.+)\.\d+\.tmp$")


def becomes(name: str) -> str | None:
    """The name of the file that a temporary one becomes; None if `name` is of another kind."""
    match = _NAME.match(name)
    return match[1] if match else None


def remove_temporaries(folder: Path, names: Collection[str]) -> None:
    """Removes what a killed run left of the files `names` in `folder`, and nothing else."""
    for path in folder.glob(".*.tmp"):
        if becomes(path.name) in names and path.is_file():
            path.unlink()


def remove_all_temporaries(folder: Path) -> None:
    """The same in a folder that is ours alone, for all names and in its folders too."""
    for path in folder.rglob(".*.tmp"):
        if becomes(path.name) and path.is_file():
            path.unlink()
