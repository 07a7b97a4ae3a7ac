"""Every setting of a run: its default, what it means and which stage it shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Stage = Literal["run", "synthesis", "finetune", "evaluate"]


def _key(default: Any, stage: Stage, help: str) -> Any:
    return field(default=default, metadata={"stage": stage, "help": help})


@dataclass(frozen=True)
class Settings:
    """A run's settings. The command line's `--key value`, a run file and a task file may set each.

    A field's metadata names the stage that it shapes: changing it redoes that stage and those that
    build on its results. "run" shapes nothing but where and how fast the work is done.
    """

    model: str = _key("smollm2-135m", "synthesis", "built-in name, HF folder, .gguf file or hub id")
    device: str | None = _key(None, "run", "cpu, cuda or cuda:N; default: a GPU if there is one")
    out: str | None = _key(None, "run", "run folder; default: runs/NAME")
    seed: int = _key(0, "synthesis", "decides every random choice")

    generator: Literal["record", "meta"] = _key(
        "record", "synthesis", "how inputs are invented: record continuation, or the paper's prompt"
    )
    pairs: int = _key(64, "synthesis", "training pairs wanted")
    at_least: int = _key(12, "synthesis", "fewer pairs than this end the run (exit code 3)")
    max_candidates: int = _key(640, "synthesis", "inputs to try at most")
    round_size: int = _key(64, "synthesis", "inputs tried in one round")
    temperature: float = _key(0.8, "synthesis", "of invented inputs")
    top_p: float = _key(0.95, "synthesis", "of invented inputs")
    top_k: int = _key(0, "synthesis", "of invented inputs; 0 keeps all")

    annotator: Literal["auto", "direct", "bias_removed", "channel", "vote"] = _key(
        "auto", "synthesis", "how outputs are found; auto: bias_removed with labels, else vote"
    )
    votes: int = _key(10, "synthesis", "samples that vote on an output")
    vote_temperature: float = _key(0.2, "synthesis", "of voting samples")
    vote_top_k: int = _key(10, "synthesis", "of voting samples; 0 keeps all")
    min_agreement: float = _key(0.3, "synthesis", "share of votes an output needs")
    filters: tuple[str, ...] = _key(
        ("noise", "shape", "length", "duplicate", "copy", "agreement", "round_trip"),
        "synthesis",
        "filters, in order",
    )
    length_sigmas: float = _key(2.0, "synthesis", "lengths lie within so many standard deviations")

    template: Literal["plain", "titled", "dialogue"] = _key(
        "plain", "synthesis", "prompt template of annotation, training and prediction"
    )
    prompt: Literal["zero_shot", "few_shot"] = _key(
        "zero_shot", "finetune", "the expert's own prompt: instruction alone, or with the examples"
    )
    epochs: int = _key(3, "finetune", "passes over the training pairs")
    lr: float = _key(2e-4, "finetune", "peak learning rate")
    rank: int = _key(16, "finetune", "LoRA rank")
    alpha: float = _key(32.0, "finetune", "LoRA alpha")
    batch_size: int = _key(8, "finetune", "pairs per optimizer step")
    example_weight: float = _key(1.0, "finetune", "loss weight of the user's own examples")
    label_smoothing: float = _key(0.0, "finetune", "share of the target spread over all tokens")
    patience: int | None = _key(1, "finetune", "evaluations without progress before stopping")
    decision: Literal["auto", "direct", "bias_removed", "channel", "greedy"] = _key(
        "auto", "finetune", "how the expert answers; auto: bias_removed with labels, else greedy"
    )

    limit: int | None = _key(200, "evaluate", "evaluation rows used at most, drawn by the seed")


RECIPES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {
        "generator": "meta",
        "annotator": "vote",
        "filters": ("noise", "length", "duplicate", "agreement"),
        "max_candidates": 400,
        "round_size": 10,
        "top_k": 40,
        "top_p": 1.0,
        "prompt": "few_shot",
        "patience": None,
        "decision": "greedy",
    },
}


def stage_settings(settings: Settings, stage: Stage) -> dict[str, Any]:
    """The settings that shape `stage`, by name."""
    return {
        each.name: getattr(settings, each.name)
        for each in fields(settings)
        if each.metadata["stage"] == stage
    }
