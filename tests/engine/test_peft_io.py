"""PEFT reads our adapters and we read PEFT's, to the same logits; the rest is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.adapters.collection import Adapters
from engine.adapters.lora import Adapter, LoraConfig, LoraPair
from engine.adapters.peft_io import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter
from engine.errors import AdapterError
from tests.engine.test_lora import alone, randomise
from tests.engine.training_setup import CPU, Setup, random_ids, tiny_setup, trained_values

ROW = random_ids(20, seed=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return tiny_setup(tmp_path_factory.mktemp("tiny"), "qwen3")


def base(tiny: Setup) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32).eval()


@torch.no_grad()
def their_logits(model: Any) -> Tensor:
    return model(torch.tensor([ROW])).logits[0]


def assert_peft_agrees(tiny: Setup, adapter: Adapter, folder: Path) -> None:
    save_adapter(adapter, folder, str(tiny.folder))
    theirs = PeftModel.from_pretrained(base(tiny), folder).eval()
    expected = alone(tiny.model, adapter, ROW)
    assert not torch.allclose(expected, alone(tiny.model, None, ROW), atol=1e-2)
    torch.testing.assert_close(their_logits(theirs), expected, rtol=1e-4, atol=1e-4)
    again = load_adapter(folder, "again", tiny.model.config, CPU)
    assert torch.equal(trained_values(again.pairs), trained_values(adapter.pairs))
    assert {k: p.scale for k, p in again.pairs.items()} == pytest.approx(
        {k: p.scale for k, p in adapter.pairs.items()}
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rslora": True, "rank": 5},
        {"targets": ("q_proj", "down_proj")},
    ],
)
def test_peft_reads_ours(tiny: Setup, tmp_path: Path, config: dict[str, Any]) -> None:
    assert_peft_agrees(tiny, tiny.adapter(trained=True, **config), tmp_path)


def test_peft_reads_a_stack_of_uneven_parts(tiny: Setup, tmp_path: Path) -> None:
    adapters = Adapters(tiny.checkpoint, CPU)
    randomise(adapters.new("one", LoraConfig(5, 7.0, rslora=True)), 1)
    randomise(adapters.new("two", LoraConfig(3, 12.0, ("k_proj", "up_proj"))), 2)
    assert_peft_agrees(tiny, adapters.stack({"one": 0.5, "two": -1.0}, "sum"), tmp_path)


def test_peft_reads_an_adapter_of_some_layers(tiny: Setup, tmp_path: Path) -> None:
    whole = tiny.adapter(trained=True)
    pairs = {key: pair for key, pair in whole.pairs.items() if key[0] == 1}
    assert_peft_agrees(tiny, Adapter("top", whole.config, whole.model, pairs), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj", "o_proj"], "use_rslora": True},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.mlp\.(up|down)_proj"},
        {"target_modules": ["q_proj", "gate_proj"], "layers_to_transform": [1]},
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 3},
            "alpha_pattern": {"self_attn.k_proj": 3, "q_proj": 5},
        },
    ],
)
def test_we_read_theirs(tiny: Setup, tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = peft.get_peft_model(base(tiny), peft.LoraConfig(r=4, lora_alpha=10, **settings)).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(tmp_path, "theirs", tiny.model.config, CPU)
    expected = their_logits(theirs)
    assert not torch.allclose(expected, alone(tiny.model, None, ROW), atol=1e-2)
    torch.testing.assert_close(alone(tiny.model, ours, ROW), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def saved(tiny: Setup, tmp_path: Path) -> Path:
    save_adapter(tiny.adapter(trained=True), tmp_path, "tiny")
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules include lm_head"),
        ({"target_modules": ["embed_tokens"]}, "target_modules include model.embed_tokens"),
        ({"target_modules": ["c_attn"]}, "match none of the model's linears"),
        ({"target_modules": "(q_proj"}, "target_modules is not a valid regex"),
        ({"target_modules": 3}, "target_modules must be a list of names or a string"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base model"),
        ({"r": 0}, "r must be a positive whole number, not 0"),
        ({"r": 3}, r"q_proj.lora_A.weight has shape \[4, 64\], the model needs \[3, 64\]"),
        ({"lora_alpha": "x"}, "lora_alpha must be a number, not 'x'"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern must map names to positive numbers"),
        ({"rank_pattern": {"(": 1}}, r"rank_pattern: '\(' is not a valid regex"),
        ({"layers_to_transform": [0, 7]}, "layers_to_transform names 7"),
        ({"target_modules": ["q_proj"]}, "has no place in this model .and 23 more have none"),
    ],
)
def test_refused_settings(tiny: Setup, saved: Path, changes: dict[str, Any], message: str) -> None:
    change_config(saved, **changes)
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(saved, "bad", tiny.model.config, CPU)
    assert str(saved) in str(caught.value)


def change_tensors(folder: Path, tensors: dict[str, Tensor | None]) -> None:
    file = folder / WEIGHTS_FILE
    merged = {**safetensors.torch.load_file(file), **tensors}
    safetensors.torch.save_file({k: v for k, v in merged.items() if v is not None}, file)


NAME = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
HEAD = "base_model.model.lm_head.lora_A.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({NAME: None}, f"tensor {NAME} is missing"),
        ({NAME: torch.zeros(3, 4)}, rf"tensor {NAME} has shape \[3, 4\]"),
        ({NAME: torch.full((160, 4), torch.nan)}, f"tensor {NAME} holds NaN"),
        ({NAME: torch.zeros(160, 4, dtype=torch.int32)}, "is torch.int32, not floating point"),
        ({HEAD: torch.zeros(4, 64)}, f"tensor {HEAD} has no place in this model"),
    ],
)
def test_refused_tensors(
    tiny: Setup, saved: Path, tensors: dict[str, Tensor | None], message: str
) -> None:
    change_tensors(saved, tensors)
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(saved, "bad", tiny.model.config, CPU)
    assert str(saved / WEIGHTS_FILE) in str(caught.value)


def test_refused_files(tiny: Setup, saved: Path) -> None:
    def message() -> str:
        with pytest.raises(AdapterError) as caught:
            load_adapter(saved, "bad", tiny.model.config, CPU)
        return str(caught.value)

    weights = saved / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "not a complete safetensors file" in message()
    weights.unlink()
    assert "adapter_model.safetensors: no such file" in message()
    weights.with_suffix(".bin").write_bytes(b"\x80")
    assert "adapter_model.bin: pickled weights can run code" in message()
    (saved / CONFIG_FILE).write_text("{")
    assert "cannot be read as JSON" in message()
    (saved / CONFIG_FILE).write_text("[]")
    assert "must hold a JSON object" in message()
    (saved / CONFIG_FILE).unlink()
    assert "adapter_config.json: no such file" in message()


def test_half_precision_files_are_read_as_fp32(tiny: Setup, saved: Path) -> None:
    file = saved / WEIGHTS_FILE
    halved = {k: v.bfloat16() for k, v in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(halved, file)
    pair: LoraPair = load_adapter(saved, "half", tiny.model.config, CPU).pairs[1, "up_proj"]
    assert pair.b.dtype == torch.float32
    assert torch.equal(pair.b, halved[NAME].float())
