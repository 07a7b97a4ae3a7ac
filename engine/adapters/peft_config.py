"""The settings in a PEFT adapter_config.json: which projections it adapts, and how strongly.

What the engine could only honour by guessing, or by leaving something out, is refused by its name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.adapters.lora import TARGETS, Adapter, Key, LoraConfig, module_name
from engine.config import ModelConfig
from engine.errors import AdapterError

_OUTSIDE = ("lm_head", "model.embed_tokens")
# Settings that change what the tensors mean; None, False and "empty" switch them off.
_UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "exclude_modules",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
)
# Initialisations that subtract from the base model's own weights.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class PeftSettings:
    """An adapter_config.json, read and checked.

    Raises:
        AdapterError: the file is missing or damaged, or asks for what the engine does not do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = _read_config(path)
        self._refuse_unsupported()
        self.rank = self._integer("r")
        self.alpha = self._number("lora_alpha", 8.0)
        self.rslora = bool(self.values.get("use_rslora"))
        self.rank_pattern = self._pattern("rank_pattern")
        self.alpha_pattern = self._pattern("alpha_pattern")

    def error(self, text: str) -> AdapterError:
        return AdapterError(f"{self.path}: {text}")

    def lora_config(self, targets: set[str]) -> LoraConfig:
        """The engine's own settings; `targets` are the projections found."""
        try:
            dropout = self._number("lora_dropout", 0.0)
            return LoraConfig(self.rank, self.alpha, tuple(targets), dropout, self.rslora)
        except AdapterError as error:
            raise self.error(str(error)) from None

    def modules(self, model: ModelConfig) -> dict[Key, tuple[int, float]]:
        """Rank and scale of every adapted projection."""
        for outside in _OUTSIDE:
            if self._targets(outside):
                raise self.error(
                    f"target_modules include {outside}, which cannot carry LoRA here; "
                    "train the adapter without it"
                )
        found = {}
        for layer in self._layers(model):
            for target in TARGETS:
                module = module_name(layer, target)
                if self._targets(module):
                    found[layer, target] = self._rank_and_scale(module)
        if not found:
            raise self.error(
                f"target_modules {self.values.get('target_modules')!r} match none of the model's "
                f"linears ({', '.join(TARGETS)})"
            )
        return found

    def _targets(self, module: str) -> bool:
        """PEFT's rule: a string is 'all-linear' or a regex for the whole name, a list has ends."""
        wanted = self.values.get("target_modules")
        if wanted == "all-linear":
            return module not in _OUTSIDE
        if isinstance(wanted, str):
            try:
                return re.fullmatch(wanted, module) is not None
            except re.error as error:
                raise self.error(f"target_modules is not a valid regex ({error})") from None
        if not isinstance(wanted, list) or not all(isinstance(item, str) for item in wanted):
            raise self.error("target_modules must be a list of names or a string")
        return any(module == item or module.endswith(f".{item}") for item in wanted)

    def _layers(self, model: ModelConfig) -> list[int]:
        layers = self.values.get("layers_to_transform")
        if layers is None or layers == []:
            return list(range(model.num_layers))
        if self.values.get("layers_pattern") not in (None, "layers", [], ["layers"]):
            raise self.error("layers_pattern other than 'layers' is not supported")
        chosen = layers if isinstance(layers, list) else [layers]
        misfits = [i for i in chosen if not isinstance(i, int) or not 0 <= i < model.num_layers]
        if misfits:
            raise self.error(f"layers_to_transform names {misfits[0]!r}, not one of the layers")
        return sorted(set(chosen))

    def _rank_and_scale(self, module: str) -> tuple[int, float]:
        rank = int(_lookup(self.rank_pattern, module, self.rank))
        alpha = _lookup(self.alpha_pattern, module, self.alpha)
        return rank, alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def _pattern(self, key: str) -> dict[str, float]:
        values = self.values.get(key) or {}
        if not isinstance(values, dict) or not all(_positive(value) for value in values.values()):
            raise self.error(f"{key} must map names to positive numbers")
        try:
            for name in values:
                re.compile(name)
        except re.error as error:
            raise self.error(f"{key}: {name!r} is not a valid regex ({error})") from None
        return values

    def _integer(self, key: str) -> int:
        value = self.values.get(key, 8)
        if not _positive(value) or not isinstance(value, int):
            raise self.error(f"{key} must be a positive whole number, not {value!r}")
        return value

    def _number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"{key} must be a number, not {value!r}")
        return float(value)

    def _refuse_unsupported(self) -> None:
        values = self.values
        if values.get("peft_type") != "LORA":
            raise self.error(f"peft_type {values.get('peft_type')!r} is not supported, only 'LORA'")
        if values.get("bias", "none") != "none":
            raise self.error(f"bias {values['bias']!r} is not supported, only 'none'")
        for key in _UNSUPPORTED:
            if values.get(key):
                raise self.error(f"{key} is not supported; train the adapter without it")
        init = values.get("init_lora_weights", True)
        if isinstance(init, str) and init.lower().startswith(_CHANGED_BASE):
            raise self.error(
                f"init_lora_weights {init!r} changes the base model; save the adapter converted "
                "(PEFT: path_initial_model_for_weight_conversion)"
            )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterError(f"{path}: no such file; give the folder of a PEFT adapter") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path}: must hold a JSON object")
    return values


def settings_of(adapter: Adapter, base_model: str) -> dict[str, Any]:
    """What adapter_config.json says of `adapter`; `base_model` is the model's name in it."""
    config, pairs = adapter.config, adapter.pairs
    usual = config.scale(config.rank, config.alpha)
    ranks, alphas = {}, {}
    for key, pair in pairs.items():
        if pair.rank != config.rank:
            ranks[module_name(*key)] = pair.rank
        if pair.rank != config.rank or not math.isclose(pair.scale, usual, rel_tol=1e-12):
            alphas[module_name(*key)] = pair.scale / config.scale(pair.rank, 1.0)
    complete = len(pairs) == adapter.model.num_layers * len(config.targets)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": list(config.targets) if complete else [module_name(*k) for k in pairs],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "inference_mode": True,
    }


def _lookup(pattern: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's rule: the first key that, as a regex, matches the end of the name."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
