"""Models on disk, whatever their form: ``open_checkpoint`` and what it returns."""

from __future__ import annotations

import re
from pathlib import Path

from engine.checkpoint.base import Checkpoint
from engine.checkpoint.builtin import BUILTIN, builtin_folder
from engine.checkpoint.expected import problems, required_shapes, validate
from engine.checkpoint.hf import HfCheckpoint
from engine.checkpoint.hub import hub_folder
from engine.checkpoint.save import save_hf
from engine.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "open_checkpoint",
    "problems",
    "required_shapes",
    "save_hf",
    "validate",
]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def open_checkpoint(source: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Find a model and read its config; its tensors are read later, one by one.

    Args:
        source: the built-in name ``smollm2-135m`` (a folder of that name: ``./smollm2-135m``); a
            transformers folder; a ``.gguf`` file; or a hub id ``org/name`` if there is no such
            folder. A ``Path`` is always a folder or file.
        revision: branch, tag or commit; only hub ids have one.

    Raises:
        CheckpointError: nothing is there, it cannot be fetched, or its files are not sound. Call
            ``validate`` to check the tensors against the config.
    """
    if source in BUILTIN and isinstance(source, str):
        return HfCheckpoint(builtin_folder(source))
    path = Path(source).expanduser()
    if revision is not None and path.exists():
        raise CheckpointError(f"{path}: a folder or file has no revision; leave it out")
    if path.is_dir():
        return HfCheckpoint(path)
    if path.is_file():
        return _open_file(path)
    if isinstance(source, str) and _HUB_ID.fullmatch(source) and path.suffix != ".gguf":
        return HfCheckpoint(hub_folder(source, revision))
    raise CheckpointError(
        f"{source}: no such folder or file; give a model's folder, a .gguf file, "
        f"a hub id (org/name) or {' or '.join(BUILTIN)}"
    )


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".gguf":
        from engine.checkpoint.gguf import GgufCheckpoint  # the gguf package is slow to import

        return GgufCheckpoint(path)
    raise CheckpointError(f"{path}: not a .gguf file; give a model's folder or a .gguf file")
