"""What a model is made of: the sizes and switches that its architecture leaves open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.rope_scaling import FactorsRope, RopeScaling, rope_scaling_from_hf


@dataclass(frozen=True)
class ModelConfig:
    """Everything that the one ``Llama`` needs to know; frozen, hashable, checked when made.

    ``layer_windows[i]`` is layer i's sliding window in positions (a query at p sees p-window+1..p),
    or None where it sees all. ``attention_bias`` is the bias of q, k and v, ``output_bias`` of o.
    ``qk_norm`` is an RMS norm over each head's q and k before the rotation.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_positions: int
    tie_word_embeddings: bool
    attention_bias: bool
    output_bias: bool
    qk_norm: bool
    layer_windows: tuple[int | None, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} key-value heads evenly"
            )
        if self.head_dim % 2:
            raise CheckpointError(f"the head dimension must be even, not {self.head_dim}")
        if len(self.layer_windows) != self.num_layers:
            raise CheckpointError(
                f"{len(self.layer_windows)} layer types for {self.num_layers} layers"
            )
        scaling = self.rope_scaling
        if isinstance(scaling, FactorsRope) and 2 * len(scaling.factors) != self.head_dim:
            raise CheckpointError(
                f"{len(scaling.factors)} rope factors for a head dimension of {self.head_dim}"
            )

    @property
    def rope_attention_scale(self) -> float:
        """Factor on the cosines and sines of the rotation (1.0 except with YaRN)."""
        return self.rope_scaling.attention_scale if self.rope_scaling else 1.0

    def rope_frequencies(self) -> Tensor:
        """The angle a position adds to each pair of a head: [head_dim/2] fp32, in radians."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        frequencies = 1.0 / self.rope_theta**exponents
        if self.rope_scaling is None:
            return frequencies
        return self.rope_scaling.rescale(frequencies, self.rope_theta)


@dataclass(frozen=True)
class Family:
    """What distinguishes one transformers architecture from the others.

    ``biases`` gives (attention_bias, output_bias) and ``windows`` the layers' windows by a
    config.json. ``defaults`` stand for keys that transformers lets a config.json leave out.
    """

    hf_class: str
    biases: Callable[[_Json], tuple[bool, bool]]
    windows: Callable[[_Json, int], tuple[int | None, ...]]
    qk_norm: bool = False
    defaults: Mapping[str, Any] | None = None


class _Json:
    """A config.json whose keys are checked as they are taken; ``where`` is its name in errors."""

    def __init__(self, values: Mapping[str, Any], where: str, defaults: Mapping[str, Any]) -> None:
        self.values = {**defaults, **values}
        self.where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(f"{key} must be a positive whole number, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.error(f"{key} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        return bool(self.values.get(key))

    def ids(self, key: str) -> tuple[int, ...]:
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) for token in ids):
            raise self.error(f"{key} must be token ids, not {value!r}")
        return tuple(ids)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key) or {}
        if not isinstance(value, Mapping):
            raise self.error(f"{key} must be an object, not {value!r}")
        return value

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: {text}")


def _optional_bias(json: _Json) -> tuple[bool, bool]:
    return json.flag("attention_bias"), json.flag("attention_bias")


def _no_windows(json: _Json, num_layers: int) -> tuple[int | None, ...]:
    return (None,) * num_layers


def _one_window(json: _Json, num_layers: int) -> tuple[int | None, ...]:
    """Mistral's: every layer has the window, unless it is null."""
    if json.values["sliding_window"] is None:
        return (None,) * num_layers
    return (json.integer("sliding_window"),) * num_layers


def _windows_by_layer(json: _Json, num_layers: int) -> tuple[int | None, ...]:
    """Qwen's: only if use_sliding_window; by layer_types, or from max_window_layers on."""
    if not json.flag("use_sliding_window") or json.values["sliding_window"] is None:
        return (None,) * num_layers
    window = json.integer("sliding_window")
    types = json.values.get("layer_types")
    if types is None:
        full = json.values["max_window_layers"]
        return tuple(None if layer < full else window for layer in range(num_layers))
    if not isinstance(types, list) or set(types) - {"full_attention", "sliding_attention"}:
        raise json.error("layer_types may only hold full_attention and sliding_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


_QWEN_DEFAULTS = {"sliding_window": 4096, "max_window_layers": 28, "rms_norm_eps": 1e-6}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _optional_bias, _no_windows),
    "mistral": Family(
        "MistralForCausalLM",
        lambda json: (False, False),
        _one_window,
        defaults={"sliding_window": 4096, "num_key_value_heads": 8},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        lambda json: (True, False),
        _windows_by_layer,
        defaults=_QWEN_DEFAULTS,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _optional_bias,
        _windows_by_layer,
        qk_norm=True,
        defaults={**_QWEN_DEFAULTS, "head_dim": 128},
    ),
}


def config_from_hf(values: Mapping[str, Any], where: str) -> ModelConfig:
    """The ModelConfig of a transformers config.json (of any version since 4.30).

    ``where`` names the file in errors. Raises CheckpointError for an unknown architecture, a
    feature that the engine lacks (quantised weights, other activations, partial rotation ...) and
    for keys that are missing or make no sense.
    """
    architecture = values.get("model_type")
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise CheckpointError(
            f"{where}: model_type {architecture!r} is not supported; "
            f"use one of: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[architecture]
    json = _Json(values, where, family.defaults or {})
    _refuse_unsupported(json)
    num_layers, num_heads = json.integer("num_hidden_layers"), json.integer("num_attention_heads")
    hidden_size = json.integer("hidden_size")
    max_positions = json.integer("max_position_embeddings", 2048)
    rope_key = "rope_parameters" if json.values.get("rope_parameters") else "rope_scaling"
    rope = json.mapping(rope_key)
    attention_bias, output_bias = family.biases(json)
    try:
        return ModelConfig(
            architecture=architecture,
            vocab_size=json.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=json.integer("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=json.integer("num_key_value_heads", num_heads),
            head_dim=json.integer("head_dim", hidden_size // num_heads),
            rms_norm_eps=json.number("rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(json, rope),
            rope_scaling=rope_scaling_from_hf(rope, f"{where}: {rope_key}", max_positions),
            max_positions=max_positions,
            tie_word_embeddings=json.flag("tie_word_embeddings"),
            attention_bias=attention_bias,
            output_bias=output_bias,
            qk_norm=family.qk_norm,
            layer_windows=family.windows(json, num_layers),
            bos_token_id=next(iter(json.ids("bos_token_id")), None),
            eos_token_ids=json.ids("eos_token_id"),
        )
    except CheckpointError as error:
        if str(error).startswith(where):
            raise
        raise json.error(str(error)) from None


def _rope_theta(json: _Json, rope: Mapping[str, Any]) -> float:
    """transformers 5 keeps rope_theta beside the scaling, earlier versions at the top."""
    return _Json(rope, json.where, {}).number("rope_theta", json.number("rope_theta", 10000.0))


def _refuse_unsupported(json: _Json) -> None:
    if json.values.get("quantization_config"):
        raise json.error("quantised weights are not supported; use the unquantised model or a GGUF")
    if json.values.get("hidden_act", "silu") != "silu":
        raise json.error(f"hidden_act {json.values['hidden_act']!r} is not supported, only 'silu'")
    if json.flag("mlp_bias"):
        raise json.error("mlp_bias is not supported")
    rope = {**json.mapping("rope_scaling"), **json.mapping("rope_parameters")}
    partial = rope.get("partial_rotary_factor", json.values.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise json.error(f"partial_rotary_factor {partial!r} is not supported, only 1.0")


def config_to_hf(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json that transformers (4.43 and later) and ``config_from_hf`` both read."""
    windows = [window for window in config.layer_windows if window is not None]
    values: dict[str, Any] = {
        "architectures": [FAMILIES[config.architecture].hf_class],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling.to_hf() if config.rope_scaling else None,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.output_bias,
        "sliding_window": windows[0] if windows else None,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if windows and config.architecture != "mistral":
        values["use_sliding_window"] = True
        values["layer_types"] = [
            "full_attention" if window is None else "sliding_attention"
            for window in config.layer_windows
        ]
    return values
