"""Hub ids, against a small server that speaks the hub's protocol; each case in a fresh process.

A fresh process because huggingface_hub reads its environment once, when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from engine.checkpoint import open_checkpoint
from tests.engine import tiny_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ERRORS = {
    "gated": (403, "GatedRepo"),
    "nowhere": (404, "RepoNotFound"),
    "pickled": (200, ""),
    "tiny": (200, ""),
}


class Hub(ThreadingHTTPServer):
    """Serves ``tiny`` (a real model, one unwanted file) and ``pickled``; knows one ``gated``."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        files["pytorch_model.bin"] = files["onnx/config.json"] = b"not wanted"
        self.repos = {
            "tiny": files,
            "pickled": {"config.json": files["config.json"], "pytorch_model.bin": b"pickle"},
        }
        self.tokens: set[str | None] = set()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        path = self.path.split("?")[0].strip("/").removeprefix("api/models/").split("/")
        status, code = ERRORS[path[1]]
        if status != 200:
            return self.send(status, b"{}", body, {"X-Error-Code": code})
        files = self.server.repos[path[1]]
        if path[2] == "revision":
            if path[3] != "main":
                return self.send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": name} for name in files]
            about = {"id": f"org/{path[1]}", "sha": COMMIT, "siblings": siblings}
            return self.send(200, json.dumps(about).encode(), body, {})
        if path[2] == "tree":
            entries = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in files.items()
            ]
            return self.send(200, json.dumps(entries).encode(), body, {})
        content = files["/".join(path[4:])]
        tag = hashlib.sha1(content).hexdigest()
        return self.send(200, content, body, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    def send(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    server = Hub(tiny_models.make("smollm2", tmp_path_factory.mktemp("repo")))
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


PROGRAM = """
import sys
from engine.checkpoint import open_checkpoint, validate
from engine.errors import CheckpointError
for argument in sys.argv[1:]:
    name, _, revision = argument.partition("@")
    try:
        checkpoint = open_checkpoint(name, revision=revision or None)
        validate(checkpoint)
        print(checkpoint.fingerprint(), *sorted(file.name for file in checkpoint.path.iterdir()))
    except CheckpointError as error:
        print(error)
"""


def open_each(hub: Hub, home: Path, *names: str, **environment: str) -> list[str]:
    """What a fresh process says of each name: fingerprint and files, or the error."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    variables["HF_HOME"] = str(home)
    variables["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        env={**variables, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(names)
    return lines


def test_download_then_offline(hub: Hub, tmp_path: Path) -> None:
    """Fetches what is wanted and no more, sends HF_TOKEN, and needs no network the second time."""
    first, gated, nowhere, revision, pickled = open_each(
        hub,
        tmp_path,
        *("org/tiny", "org/gated", "org/nowhere", "org/tiny@v9", "org/pickled"),
        HF_TOKEN="hf_secret",
    )
    fingerprint, *files = first.split()
    assert files == ["config.json", "generation_config.json", "model.safetensors"]
    assert "Bearer hf_secret" in hub.tokens
    assert gated.startswith("org/gated: gated; accept its terms at http")
    assert nowhere.startswith("org/nowhere: neither a folder here nor a model of the hub")
    assert revision.startswith("org/tiny: the hub knows no revision 'v9'")
    assert pickled.startswith("org/pickled: the hub has no safetensors weights")

    again, absent = open_each(hub, tmp_path, "org/tiny", "org/nowhere", HF_HUB_OFFLINE="1")
    assert again == first
    assert "org/nowhere: not in the hub's cache" in absent
    assert "HF_HUB_OFFLINE forbids the download" in absent
    (snapshot,) = (tmp_path / "hub" / "models--org--tiny" / "snapshots").iterdir()
    assert open_checkpoint(snapshot).fingerprint() == fingerprint


def test_no_connection(hub: Hub, tmp_path: Path) -> None:
    (line,) = open_each(hub, tmp_path, "org/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("org/tiny: cannot be fetched from http://127.0.0.1:9 (")
