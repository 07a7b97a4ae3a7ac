"""GGUF files hold the same models as the folders they were written from."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter

from engine.checkpoint import Checkpoint, open_checkpoint, required_shapes, save_hf, validate
from engine.checkpoint.gguf_file import read_head
from engine.errors import CheckpointError
from engine.rope_scaling import FactorsRope
from tests.engine import tiny_gguf, tiny_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("families")
    return {
        family: open_checkpoint(tiny_models.make(family, root / family))
        for family in tiny_models.FAMILIES
    }


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_same_model_as_the_folder(
    family: str, folders: dict[str, Checkpoint], tmp_path: Path
) -> None:
    folder = folders[family]
    file = open_checkpoint(tiny_gguf.write(folder, tmp_path / "model.gguf"))
    validate(file)
    assert file.shapes() == folder.shapes()
    for name in folder.shapes():
        assert torch.equal(file.read(name), folder.read(name)), name
    if family == "llama3":
        assert isinstance(file.config.rope_scaling, FactorsRope)
        torch.testing.assert_close(
            file.config.rope_frequencies(), folder.config.rope_frequencies(), rtol=1e-6, atol=0
        )
    else:
        assert file.config == folder.config


def test_biases_of_llama_are_put_in_order(tmp_path: Path) -> None:
    folder = open_checkpoint(
        tiny_models.make("llama2", tmp_path / "hf", attention_bias=True, num_key_value_heads=2)
    )
    file = open_checkpoint(tiny_gguf.write(folder, tmp_path / "model.gguf"))
    validate(file)
    assert file.config == folder.config
    for name in folder.shapes():
        assert torch.equal(file.read(name), folder.read(name)), name


def test_yarn(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}
    rope["original_max_position_embeddings"] = 128
    folder = open_checkpoint(tiny_models.make("qwen2", tmp_path / "hf", rope_parameters=rope))
    file = open_checkpoint(tiny_gguf.write(folder, tmp_path / "model.gguf"))
    assert file.config == folder.config


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
def test_quantised_weights_decode_in_place(
    kind: Kind, folders: dict[str, Checkpoint], tmp_path: Path
) -> None:
    folder = folders["llama3"]
    file = open_checkpoint(tiny_gguf.write(folder, tmp_path / "model.gguf", kind))
    validate(file)
    plain = {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
    for name, shape in folder.shapes().items():
        expected = folder.read(name)
        if len(shape) == 2:
            raw = gguf.quants.quantize(expected.numpy(), kind)
            expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
            assert file.read(name).dtype == plain.get(kind, torch.float32)
        assert torch.equal(file.read(name).float(), expected), name


def decodable() -> list[Kind]:
    kinds = []
    for kind in Kind:
        try:
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            kinds.append(kind)
        except NotImplementedError:
            pass
    return kinds


@pytest.mark.parametrize("kind", decodable(), ids=lambda kind: kind.name)
def test_every_type_the_package_decodes(
    kind: Kind, folders: dict[str, Checkpoint], tmp_path: Path
) -> None:
    """Random bytes are valid in every type; rows are decoded in several pieces."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 1027, 2048
    raw = np.random.default_rng(0).integers(
        0, 120, (rows, columns // block * block_bytes), dtype=np.uint8
    )
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, value in tiny_gguf.metadata_of(folders["llama2"].config, "llama").items():
        tiny_gguf.add_value(writer, key, value)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    tiny_gguf.finish(writer)
    tensor = open_checkpoint(tmp_path / "model.gguf").read("model.embed_tokens.weight")
    bf16 = raw.view(np.uint16).astype(np.uint32) << 16 if kind == Kind.BF16 else None
    expected = gguf.quants.dequantize(raw, kind) if bf16 is None else bf16.view(np.float32)
    assert torch.equal(tensor.float().nan_to_num(), torch.from_numpy(expected).nan_to_num())


def test_head_agrees_with_the_package(folders: dict[str, Checkpoint], tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    words = ["", "a", "Grüße", "▁x", "\x00"]
    tiny_gguf.write(folders["qwen3"], file, extra__words=words, extra__scores=[1.5, -2.0])
    head, peer = read_head(file), gguf.GGUFReader(file)
    theirs = {k: f.contents() for k, f in peer.fields.items() if not k.startswith("GGUF.")}
    assert head.metadata == theirs
    assert head.metadata["extra.words"] == words
    for tensor in peer.tensors:
        ours = head.tensors[tensor.name]
        assert (ours.offset, ours.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))


def test_converts_to_a_folder(folders: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Llama 3's factors survive, in a form that transformers computes the same from."""
    from transformers import AutoModelForCausalLM

    folder = folders["llama3"]
    file = open_checkpoint(tiny_gguf.write(folder, tmp_path / "model.gguf"))
    tensors = ((name, file.read(name)) for name in required_shapes(file.config))
    save_hf(tmp_path / "hf", file.config, tensors, dtype=torch.float32)
    tokens = torch.arange(200).view(1, -1)
    logits = [
        AutoModelForCausalLM.from_pretrained(path)(tokens).logits
        for path in (folder.path, tmp_path / "hf")
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
    assert open_checkpoint(tmp_path / "hf").config == file.config


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__architecture": "gptneox"}, "'gptneox' is not supported"),
        ({"llama__block_count": None}, "llama.block_count must be a positive whole number"),
        ({"llama__block_count": "two"}, "llama.block_count must be a positive whole number"),
        ({"llama__attention__head_count_kv": [1, 2]}, "head_count_kv must be"),
        ({"llama__rope__dimension_count": 8}, "rope.dimension_count must equal"),
        ({"llama__rope__scaling__type": "longrope"}, "rope scaling 'longrope'"),
        ({"llama__expert_count": 8}, "mixtures of experts"),
        ({"llama__attention__sliding_window": "x"}, "sliding_window"),
        ({"split__count": 3}, "split.count is 3"),
        ({"split__count": "x"}, "split.count"),
        ({"tokenizer__ggml__eos_token_id": "x"}, "eos_token_id"),
        ({"tokenizer__ggml__bos_token_id": "x"}, "bos_token_id"),
        ({"llama__feed_forward_length": 128}, "mlp.gate_proj.weight has shape [160, 64]"),
        ({"llama__block_count": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"llama__block_count": 1}, "model.layers.1.input_layernorm.weight has no place"),
    ],
)
def test_refusals(
    metadata: dict[str, object],
    message: str,
    folders: dict[str, Checkpoint],
    tmp_path: Path,
) -> None:
    file = tmp_path / "model.gguf"
    architecture = metadata.get("general__architecture")
    if architecture:
        tiny_gguf.write_empty(file, str(architecture))
    else:
        tiny_gguf.write(folders["llama2"], file, **metadata)
    with pytest.raises(CheckpointError) as caught:
        validate(open_checkpoint(file))
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_undecodable_type_is_named(folders: dict[str, Checkpoint], tmp_path: Path) -> None:
    file = tiny_gguf.write(folders["llama2"], tmp_path / "model.gguf")
    raw = bytearray(file.read_bytes())
    name = b"blk.0.attn_norm.weight"
    at = raw.index(name) + len(name) + 4 + 8
    raw[at : at + 4] = int(Kind.I32).to_bytes(4, "little")
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"input_layernorm.weight is stored as I32"):
        validate(open_checkpoint(file))
    raw[at : at + 4] = (999).to_bytes(4, "little")
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"attn_norm.weight has type 999"):
        open_checkpoint(file)


def test_truncated_anywhere_is_one_line(folders: dict[str, Checkpoint], tmp_path: Path) -> None:
    whole = tiny_gguf.write(folders["llama2"], tmp_path / "whole.gguf").read_bytes()
    cuts = [*range(0, 3000, 37), len(whole) // 2, len(whole) - 33]
    file = tmp_path / "cut.gguf"
    for cut in cuts:
        file.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=r"cut\.gguf.*(truncated|not a GGUF)"):
            open_checkpoint(file)


def test_damaged_heads_never_crash(folders: dict[str, Checkpoint], tmp_path: Path) -> None:
    whole = tiny_gguf.write(folders["llama3"], tmp_path / "whole.gguf").read_bytes()
    dice = random.Random(0)
    file = tmp_path / "damaged.gguf"
    refusals = []
    for _ in range(300):
        raw = bytearray(whole)
        raw[dice.randrange(2800)] ^= 1 << dice.randrange(8)
        file.write_bytes(raw)
        try:
            validate(open_checkpoint(file))
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert all(text.startswith(str(file)) and "\n" not in text for text in refusals)
