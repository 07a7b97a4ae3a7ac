"""manifest.json: what made each result in a run folder, and whether it still holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.files import write_json
from selfguide.errors import UserError

_CHUNK = 1 << 20
_COMPLETE = {"fingerprint", "seconds", "peak_mib"}  # every stage's record has these


@dataclass(frozen=True)
class Shape:
    """Everything that shapes a stage, by name; two equal shapes give equal results."""

    aspects: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON: 64 hex digits."""
        return _hash(self.aspects)

    def hashes(self) -> dict[str, str]:
        """A short hash of each aspect, which tells later what has changed."""
        return {name: _hash(value)[:16] for name, value in self.aspects.items()}


class Manifest:
    """The manifest of a run folder; all keys but "stages" describe the latest run.

    A stage with an incomplete record counts as not done.

    Args:
        path: of the file, which need not exist.

    Raises:
        UserError: the file is not a manifest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {"stages": {}}
        if path.exists():
            self.values = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self.path.read_bytes())
            stages = values["stages"]
            if not isinstance(stages, dict):
                raise TypeError("stages must be an object")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: not a run's manifest ({error}); choose another --out, or start "
                "anew with --resume never"
            ) from None
        return {**values, "stages": {n: r for n, r in stages.items() if _complete(r)}}

    def stage(self, name: str) -> dict[str, Any] | None:
        """The record of a finished stage; None if it never finished."""
        found: dict[str, Any] | None = self.values["stages"].get(name)
        return found

    def changes(self, name: str, shape: Shape) -> list[str]:
        """The aspects in which a finished stage's shape differs from `shape`, by name."""
        record = self.stage(name)
        before, now = (record or {}).get("shaped_by", {}), shape.hashes()
        return sorted(key for key in before | now if before.get(key) != now.get(key))

    def write(self) -> None:
        """Replaces the file."""
        write_json(self.path, self.values)


def _complete(record: Any) -> bool:
    if not isinstance(record, dict) or not record.keys() >= _COMPLETE:
        return False
    return all(isinstance(record.get(key, {}), dict) for key in ("files", "shaped_by"))


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the files `names` in `folder`, and of all files below those that are folders."""
    paths = []
    for name in names:
        path = folder / name
        inside = sorted(each for each in path.rglob("*") if each.is_file())
        paths += inside if path.is_dir() else [path]
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in paths}


def file_hash(path: Path) -> str:
    """SHA-256 of a file: 64 hex digits; "missing" if there is none."""
    if not path.is_file():
        return "missing"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _hash(value: Any) -> str:
    data = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(data.encode()).hexdigest()
