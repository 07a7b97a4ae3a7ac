"""ModelConfig against transformers: sizes, windows, rotary frequencies, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.config import config_from_hf, config_to_hf
from engine.errors import CheckpointError
from tests.engine import tiny_models

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "yarn_all": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.5,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
    "factors": {
        "rope_type": "longrope",
        "factor": 1.0,
        "short_factor": [1.0, 1.0, 1.5, 2.0, 4.0, 7.5, 8.0, 8.0],
        "long_factor": [1.0, 1.0, 1.5, 2.0, 4.0, 7.5, 8.0, 8.0],
        "attention_factor": 1.0,
        "original_max_position_embeddings": 512,
    },
}


def llama(**changes: Any) -> dict[str, Any]:
    """A Llama config.json in the style of transformers 4, with changes; None removes a key."""
    values = {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        **changes,
    }
    return {key: value for key, value in values.items() if value is not None}


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_family_matches_transformers(family: str, tmp_path: Path) -> None:
    folder = tiny_models.make(family, tmp_path)
    peer = AutoConfig.from_pretrained(folder)
    ours = config_from_hf(json.loads((folder / "config.json").read_text()), "config.json")
    assert ours.architecture == peer.model_type
    assert ours.num_layers == peer.num_hidden_layers
    assert (ours.num_heads, ours.num_kv_heads) == (
        peer.num_attention_heads,
        peer.num_key_value_heads,
    )
    assert ours.head_dim == (getattr(peer, "head_dim", None) or peer.hidden_size // ours.num_heads)
    assert ours.rope_theta == peer.rope_parameters["rope_theta"]
    assert ours.tie_word_embeddings == peer.tie_word_embeddings
    assert ours.attention_bias == (family == "qwen2")
    assert ours.qk_norm == (family == "qwen3")
    assert ours.layer_windows == ((12, 12) if family == "mistral" else (None, None))
    assert ours.eos_token_ids == ((2, 3) if family == "llama3" else (2,))
    assert hash(ours) == hash(config_from_hf(config_to_hf(ours, torch.bfloat16), "again"))


@pytest.mark.parametrize("style", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize("kind", ROPES)
def test_rope_frequencies_match_transformers(kind: str, style: str, tmp_path: Path) -> None:
    if style == "transformers 5":
        rope = {**ROPES[kind], "rope_theta": 500000.0}
        values = llama(rope_parameters=rope, rope_theta=None)
    else:
        values = llama(rope_scaling=ROPES[kind], rope_theta=500000.0)
    ours = config_from_hf(values, "config.json")
    for shape in (values, config_to_hf(ours, torch.float32)):
        peer = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**json.loads(json.dumps(shape)))
        ).model.rotary_emb
        torch.testing.assert_close(ours.rope_frequencies(), peer.inv_freq, rtol=1e-6, atol=0)
        assert ours.rope_attention_scale == pytest.approx(peer.attention_scaling, rel=1e-6)
    assert config_from_hf(config_to_hf(ours, torch.float32), "again") == ours


def test_old_spelling_of_rope_type() -> None:
    config = config_from_hf(llama(rope_scaling={"type": "linear", "factor": 2.0}), "config.json")
    plain = config_from_hf(llama(), "config.json")
    assert torch.equal(config.rope_frequencies() * 2, plain.rope_frequencies())


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral"},
        {"model_type": "mistral", "sliding_window": 7},
        {"model_type": "qwen2", "sliding_window": 7},
        {"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True},
        {
            "model_type": "qwen2",
            "sliding_window": 7,
            "use_sliding_window": True,
            "max_window_layers": 1,
        },
        {
            "model_type": "qwen3",
            "sliding_window": 7,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ],
)
def test_windows_match_transformers(changes: dict[str, Any]) -> None:
    values = llama(**changes)
    peer = AutoConfig.for_model(**values)
    everywhere = ["sliding_attention"] * 2
    types = getattr(peer, "layer_types", None) or everywhere
    expected = tuple(peer.sliding_window if t == "sliding_attention" else None for t in types)
    ours = config_from_hf(values, "config.json")
    assert ours.layer_windows == expected
    assert config_from_hf(config_to_hf(ours, torch.float32), "again") == ours


def test_null_window_is_none() -> None:
    values = {**llama(model_type="mistral"), "sliding_window": None}
    assert config_from_hf(values, "config.json").layer_windows == (None, None)


def test_defaults_of_short_configs() -> None:
    values = llama(num_key_value_heads=None, rope_theta=None, rms_norm_eps=None)
    config = config_from_hf(values, "config.json")
    assert (config.num_kv_heads, config.rope_theta, config.rms_norm_eps) == (4, 10000.0, 1e-6)
    assert config_from_hf(llama(model_type="qwen3"), "config.json").head_dim == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
        ({"model_type": ["llama"]}, "is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"rope_type": ["yarn"], "factor": 2.0}}, "rope type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor must be a positive number, not None"),
        ({"rope_scaling": {**ROPES["llama3"], "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": {**ROPES["yarn"], "mscale": 1.0}}, "mscale"),
        ({"rope_scaling": {**ROPES["factors"], "short_factor": [1.0]}}, "short and long"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"num_hidden_layers": None}, "num_hidden_layers must be a positive whole number"),
        ({"hidden_size": "64"}, "hidden_size must be a positive whole number, not '64'"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps must be a positive number"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"head_dim": 15}, "even"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be token ids"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["chunked"]},
            "layer_types",
        ),
    ],
)
def test_refusals_are_one_line_with_the_file(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        config_from_hf(llama(**changes), "dir/config.json")
    text = str(caught.value)
    assert text.startswith("dir/config.json")
    assert message in text
    assert "\n" not in text
