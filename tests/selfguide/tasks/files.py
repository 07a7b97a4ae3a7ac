"""Small task files for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXAMPLES = [
    {"input": "The tea was lovely.", "output": "good"},
    {"input": "My room had no window.", "output": "bad"},
]


def write(path: Path, *lines: Any) -> Path:
    """A file of lines: texts as they are, anything else as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def native(folder: Path, **keys: Any) -> Path:
    """A native task file in JSON; a key set to None is left out."""
    document = {"instruction": "Is the guest pleased?", "examples": EXAMPLES, **keys}
    present = {key: value for key, value in document.items() if value is not None}
    return write(folder / "task.json", present)
