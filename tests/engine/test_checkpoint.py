"""Transformers folders: read whole and in shards, written back, and refused with one clear line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.checkpoint import open_checkpoint, problems, required_shapes, save_hf, validate
from engine.errors import CheckpointError
from tests.engine import tiny_models


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make("llama2", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make("llama2", tmp_path_factory.mktemp("sharded"), max_shard_size="150KB")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_reads_what_transformers_wrote(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_models.make(family, tmp_path, dtype=dtype))
    validate(checkpoint)
    expected = load_file(tmp_path / "model.safetensors")
    assert checkpoint.shapes() == {name: tuple(t.shape) for name, t in expected.items()}
    assert set(checkpoint.shapes()) == set(required_shapes(checkpoint.config))
    for name, tensor in expected.items():
        read = checkpoint.read(name)
        assert read.dtype == dtype
        assert torch.equal(read, tensor), name


def test_shards_are_one_model(llama: Path, sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 2
    whole, parts = open_checkpoint(str(llama)), open_checkpoint(sharded)
    validate(parts)
    assert whole.shapes() == parts.shapes()
    assert all(torch.equal(whole.read(name), parts.read(name)) for name in whole.shapes())
    assert whole.fingerprint() == parts.fingerprint()


def test_read_into_a_slice_converts_piece_by_piece(tmp_path: Path) -> None:
    folder = tiny_models.make("qwen2", tmp_path, vocab_size=40000)
    checkpoint = open_checkpoint(folder)
    name = "model.embed_tokens.weight"
    rows, width = checkpoint.shapes()[name]
    out = torch.full((rows + 2, width), torch.nan, dtype=torch.bfloat16)
    checkpoint.read_into(name, out[1:-1])
    assert torch.equal(out[1:-1], checkpoint.read(name).bfloat16())
    assert out[[0, -1]].isnan().all()


def test_generation_config_names_the_end_tokens(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert open_checkpoint(folder).config.eos_token_ids == (7, 9)


def test_surplus_that_follows_from_the_config_is_fine(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    change(
        folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": eight_ones()})
    )
    validate(open_checkpoint(folder))
    tied = tiny_models.make("smollm2", tmp_path / "tied")
    change(tied, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    validate(open_checkpoint(tied))


def test_fingerprint_follows_the_model(llama: Path, tmp_path: Path) -> None:
    first = open_checkpoint(llama).fingerprint()
    assert len(first) == 64
    assert first == open_checkpoint(Path(shutil.copytree(llama, tmp_path / "copy"))).fingerprint()
    trained = Path(shutil.copytree(llama, tmp_path / "trained"))
    change(trained, lambda t: t["model.layers.1.mlp.up_proj.weight"].mul_(1.001))
    other = Path(shutil.copytree(llama, tmp_path / "other"))
    edit_config(other, rope_parameters={"rope_type": "default", "rope_theta": 20000.0})
    prints = {first, open_checkpoint(trained).fingerprint(), open_checkpoint(other).fingerprint()}
    assert len(prints) == 3


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_saved_models_compute_the_same_in_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny_models.make(family, tmp_path / "made")
    checkpoint = open_checkpoint(folder)
    names = list(checkpoint.shapes())
    random.Random(0).shuffle(names)
    tensors = ((name, checkpoint.read(name)) for name in names)
    save_hf(tmp_path / "saved", checkpoint.config, tensors, dtype=torch.float32)
    saved = open_checkpoint(tmp_path / "saved")
    validate(saved)
    assert saved.config == checkpoint.config
    assert saved.fingerprint() == checkpoint.fingerprint()
    tokens = torch.arange(60).view(1, -1)
    logits = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(tokens).logits
        for path in (folder, tmp_path / "saved")
    ]
    assert torch.equal(logits[0], logits[1])


def test_a_failed_save_leaves_the_old_model(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    checkpoint = open_checkpoint(folder)
    before = checkpoint.fingerprint()
    some = [(name, checkpoint.read(name)) for name in list(checkpoint.shapes())[:3]]
    for tensors in (
        some,
        [*some, some[0]],
        [("lm_head.weight", eight_ones())],
        [("nonsense", eight_ones())],
    ):
        with pytest.raises(ValueError, match=r"given|written"):
            save_hf(folder, checkpoint.config, tensors)
    assert open_checkpoint(folder).fingerprint() == before
    assert not list(folder.glob(".*"))


def eight_ones() -> torch.Tensor:
    return torch.ones(8)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


NORM = "model.layers.1.input_layernorm.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), r"config\.json: no such file"),
    "config is not JSON": (
        lambda d: (d / "config.json").write_text('{"model_type": "lla'),
        r"config\.json: cannot be read as JSON",
    ),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), r"config\.json: does not"),
    "architecture": (
        lambda d: edit_config(d, model_type="mamba"),
        r"config\.json: model_type 'mamba'",
    ),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        r"model\.safetensors: no such file",
    ),
    "pickled": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        r"pytorch_model\.bin: pickled weights .* never read; convert",
    ),
    "empty": (
        lambda d: (d / "model.safetensors").write_bytes(b""),
        r"model\.safetensors: not a complete safetensors file",
    ),
    "truncated": (
        lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:-1]
        ),
        r"model\.safetensors: not a complete safetensors file",
    ),
    "missing tensor": (
        lambda d: change(d, lambda t: t.pop(NORM)),
        rf"model\.safetensors: tensor {NORM} is missing",
    ),
    "surplus tensor": (
        lambda d: change(
            d, lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": eight_ones()})
        ),
        r"model\.safetensors: tensor model.layers.1.self_attn.q_proj.bias has no place",
    ),
    "wrong shape": (
        lambda d: change(d, lambda t: t.update({NORM: eight_ones()})),
        rf"model\.safetensors: tensor {NORM} has shape \[8\], .* needs \[64\]",
    ),
    "integers": (
        lambda d: change(d, lambda t: t.update({NORM: t[NORM].char()})),
        rf"model\.safetensors: tensor {NORM} is stored as I8",
    ),
    "two problems": (
        lambda d: change(d, lambda t: (t.pop(NORM), t.pop("lm_head.weight"))),
        r"is missing \(and 1 more such problems\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_with_file_and_tensor(damage: str, llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    harm, message = DAMAGE[damage]
    harm(folder)
    refused(folder, message)


def refused(source: str | Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        validate(open_checkpoint(source))
    assert str(caught.value).startswith(str(source))
    assert "\n" not in str(caught.value)


def test_half_downloaded_shards(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    second = sorted(folder.glob("*.safetensors"))[1]
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    refused(folder, rf"{second.name}: not a complete safetensors file")
    second.unlink()
    refused(folder, rf"{second.name}: no such file, although .*index.json says that it holds model")
    shutil.copy(sorted(folder.glob("*.safetensors"))[0], second)
    refused(folder, rf"{second.name}: tensor .* is missing, although model.safetensors.index.json")


def test_damaged_index(sharded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../model.safetensors"}}))
    refused(folder, r"index.json: tensor lm_head.weight lies in '../model")
    index.write_text("{}")
    refused(folder, r"index.json: has no weight_map")
    del values["weight_map"][NORM]
    index.write_text(json.dumps(values))
    refused(folder, rf"safetensors: holds tensor {NORM}, which .*index.json does not list there")


def test_file_cut_after_it_was_opened(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    checkpoint = open_checkpoint(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model.safetensors: ends within tensor model.norm"):
        checkpoint.read("model.norm.weight")


def test_flipped_header_bits_never_crash(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    dice = random.Random(0)
    refusals = []
    for _ in range(200):
        raw = bytearray(whole)
        raw[dice.randrange(2000)] ^= 1 << dice.randrange(8)
        file.write_bytes(raw)
        try:
            validate(open_checkpoint(folder))
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert all(text.startswith(str(file)) and "\n" not in text for text in refusals)


@pytest.mark.parametrize("source", ["nowhere", "./no/such/folder", "no/model.gguf", Path("a/b")])
def test_nothing_there(source: str | Path) -> None:
    refused(source, "no such folder or file; give a model's folder")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    refused(file, "not a .gguf file")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"")
    refused(gguf, "not a GGUF file")


def test_problems_lists_them_all(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    edit_config(folder, num_hidden_layers=3)
    assert len(problems(open_checkpoint(folder))) == len(
        [name for name in open_checkpoint(llama).shapes() if ".layers.1." in name]
    )


def test_revision_of_a_folder(llama: Path) -> None:
    with pytest.raises(CheckpointError, match="has no revision"):
        open_checkpoint(llama, revision="main")
