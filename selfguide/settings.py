"""Every setting of a run: its default, what it means, what is allowed, which stage it shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

from selfguide.errors import UserError, nearest
from selfguide.setting_values import parse_value

Stage = Literal["run", "synthesis", "finetune", "evaluate"]

FILTERS = (
    "noise",
    "shape",
    "length",
    "duplicate",
    "copy",
    "overlap",
    "agreement",
    "round_trip",
)
"""Every filter, in the order in which they judge."""


def _key(
    default: Any,
    stage: Stage,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    among: tuple[str, ...] = (),
    pattern: str = "",
) -> Any:
    allowed = {"low": low, "high": high, "among": among, "pattern": pattern}
    return field(default=default, metadata={"stage": stage, "help": help, **allowed})


@dataclass(frozen=True)
class Settings:
    """A run's settings. The command line's `--key value`, a run file and a task file may set each.

    A field's metadata names the stage that it shapes: changing it redoes that stage and those that
    build on its results. "run" shapes nothing but where and how fast the work is done. `low`,
    `high`, `among` and `pattern` say which values are allowed.
    """

    model: str = _key("smollm2-135m", "synthesis", "built-in name, HF folder, .gguf file or hub id")
    device: str | None = _key(
        None,
        "run",
        "cpu, cuda or cuda:N; default: a GPU if there is one",
        pattern=r"cpu|cuda(:\d+)?",
    )
    out: str | None = _key(None, "run", "run folder; default: runs/NAME")
    quantize: Literal["int8", "int4", "nf4"] | None = _key(
        None,
        "synthesis",
        "int8, int4 or nf4 holds the model's weights in 8 or 4 bits, to fit less memory; none: not",
    )
    seed: int = _key(0, "synthesis", "decides every random choice", low=0, high=2**63 - 1)

    generator: Literal["record", "reverse", "meta"] = _key(
        "record",
        "synthesis",
        "how inputs are invented: record continuation; in reverse, for invented outputs (free text "
        "by default); or the paper's prompt",
    )
    pairs: int = _key(64, "synthesis", "training pairs wanted", low=1, high=10**6)
    pool: float = _key(
        1.0,
        "synthesis",
        "survivors to choose each training pair from, the surest and most varied; 1 takes the "
        "first; 2.5 for free text",
        low=1,
        high=100,
    )
    at_least: int = _key(12, "synthesis", "fewer pairs than this end the run (exit code 3)", low=0)
    max_candidates: int = _key(640, "synthesis", "inputs to try at most", low=1, high=10**7)
    round_size: int = _key(64, "synthesis", "inputs tried in one round", low=1, high=10**5)
    temperature: float = _key(0.8, "synthesis", "of invented inputs", low=0, high=10)
    top_p: float = _key(0.95, "synthesis", "of invented inputs", low=0.01, high=1)
    top_k: int = _key(0, "synthesis", "of invented inputs; 0 keeps all", low=0)

    annotator: Literal["auto", "direct", "bias_removed", "channel", "both", "vote"] = _key(
        "auto",
        "synthesis",
        "how outputs are found; both: direct and channel, biases removed, on one scale; auto: both "
        "with labels, else vote",
    )
    votes: int = _key(10, "synthesis", "samples that vote on an output", low=1, high=1000)
    vote_temperature: float = _key(0.2, "synthesis", "of voting samples", low=0, high=10)
    vote_top_k: int = _key(10, "synthesis", "of voting samples; 0 keeps all", low=0)
    min_agreement: float = _key(0.3, "synthesis", "share of votes an output needs", low=0, high=1)
    filters: tuple[str, ...] = _key(FILTERS, "synthesis", "what drops candidates", among=FILTERS)
    length_sigmas: float = _key(
        2.0, "synthesis", "lengths lie within so many standard deviations", low=0.1
    )

    template: Literal["plain", "titled", "dialogue"] = _key(
        "plain", "synthesis", "prompt template of annotation, training and prediction"
    )
    prompt: Literal["zero_shot", "few_shot"] = _key(
        "zero_shot", "finetune", "the expert's own prompt: instruction alone, or with the examples"
    )
    epochs: int = _key(5, "finetune", "passes over the training pairs", low=1, high=1000)
    trainings: int = _key(
        1,
        "finetune",
        "trainings, from other initial weights each, whose mean is the expert; 3 with labels by "
        "default",
        low=1,
        high=64,
    )
    lr: float | None = _key(
        None,
        "finetune",
        "peak learning rate; none: 1e-3 with labels, 5e-4 for free text, 2e-4 for models wider "
        "than 768",
        low=1e-8,
        high=1,
    )
    rank: int = _key(16, "finetune", "LoRA rank", low=1, high=1024)
    alpha: float = _key(32.0, "finetune", "LoRA alpha", low=0.01)
    batch_size: int = _key(8, "finetune", "pairs per optimizer step", low=1, high=10**5)
    example_weight: float = _key(3.0, "finetune", "loss weight of the user's own examples", low=0)
    examples_share: float = _key(
        0.0,
        "finetune",
        "share of what the examples alone teach in the expert, beside what all pairs teach; 0.25 "
        "for free text",
        low=0,
        high=1,
    )
    label_smoothing: float = _key(
        0.0, "finetune", "share of the target spread over all tokens", low=0, high=0.9
    )
    patience: int | None = _key(
        None,
        "finetune",
        "stop after so many passes without a better loss on pairs held out for that; none: never",
        low=1,
    )
    decision: Literal["auto", "direct", "bias_removed", "channel", "greedy"] = _key(
        "auto", "finetune", "how the expert answers; auto: direct with labels, else greedy"
    )

    limit: int | None = _key(
        200, "evaluate", "evaluation rows used at most, drawn by the seed", low=1
    )


_PAPER: Mapping[str, Any] = {
    "generator": "meta",
    "pairs": 400,
    "at_least": 10,
    "max_candidates": 400,
    "round_size": 10,
    "top_k": 40,
    "top_p": 1.0,
    "annotator": "vote",
    "votes": 10,
    "vote_temperature": 0.2,
    "vote_top_k": 10,
    "min_agreement": 0.3,
    "filters": ("noise", "length", "duplicate", "agreement"),
    "prompt": "few_shot",
    "epochs": 3,
    "lr": 2e-4,
    "example_weight": 1.0,
    "decision": "greedy",
}

_FREE_TEXT: Mapping[str, Any] = {
    "generator": "reverse",
    "pool": 2.5,
    "prompt": "few_shot",
    "examples_share": 0.25,
}

_LABELS: Mapping[str, Any] = {"trainings": 3}

RECIPES = ("default", "paper")


def recipe(name: str, *, classification: bool) -> dict[str, Any]:
    """Settings that differ from the defaults under a recipe.

    "paper" are the settings of arXiv 2407.12874 that "fit all" tasks: its meta-prompt 40 times 10,
    temperature 0.6 for classification and 1.0 for free text, and all pairs that survive. The length
    filter looks at outputs only in free text, as there. The learning rate is ours: the paper's
    5e-5 is for full finetuning, not for LoRA.

    Args:
        name: one of `RECIPES`.
        classification: whether the task has labels.

    Raises:
        UserError: there is no such recipe.
    """
    if name not in RECIPES:
        raise UserError(f"recipe: {name} is none of {', '.join(RECIPES)}{nearest(name, RECIPES)}")
    if name == "default":
        return dict(_LABELS if classification else _FREE_TEXT)
    return {**_PAPER, "temperature": 0.6 if classification else 1.0}


def build_settings(
    recipe: Mapping[str, Any], *layers: Mapping[str, Any], where: Sequence[str]
) -> Settings:
    """The settings of a run.

    Args:
        recipe: what the chosen recipe sets.
        layers: what the user set, later ones win: task file, run file, command line. Values may be
            text ("8", "1e-4", "none", "noise,length"), as it stands in files and commands.
        where: what each layer is called in messages.

    Raises:
        UserError: an unknown setting or a value that is not allowed, and where it was set.
    """
    values = dict(recipe)
    origin: dict[str, str] = {}
    hints = get_type_hints(Settings)
    limits = {each.name: each.metadata for each in fields(Settings)}
    for layer, place in zip(layers, where, strict=True):
        for key, value in layer.items():
            if key not in limits:
                raise UserError(f"{place}: unknown setting {key}{nearest(key, limits)}")
            values[key] = parse_value(value, hints[key], limits[key], f"{place}: {key}")
            origin[key] = place
    settings = Settings(**values)
    most = min(settings.pairs, settings.max_candidates)
    if settings.at_least <= most:
        return settings
    if "at_least" in origin:
        raise UserError(
            f"{origin['at_least']}: at_least: {settings.at_least} can never be reached with "
            f"pairs {settings.pairs} and max_candidates {settings.max_candidates}"
        )
    return replace(settings, at_least=most)


def stage_settings(settings: Settings, stage: Stage) -> dict[str, Any]:
    """The settings that shape `stage`, by name."""
    return {
        each.name: getattr(settings, each.name)
        for each in fields(settings)
        if each.metadata["stage"] == stage
    }
