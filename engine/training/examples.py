"""Training examples as token ids, checked before anything is computed, and their order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from engine.config import ModelConfig
from engine.errors import TrainingError
from engine.seeds import mix
from engine.text.tokenizer import Tokenizer
from engine.training.config import TrainConfig, TrainExample
from engine.training.packing import Encoded


def encode_examples(
    examples: Sequence[TrainExample],
    tokenizer: Tokenizer,
    model: ModelConfig,
    *,
    append_eos: bool,
    what: str = "example",
) -> list[Encoded]:
    """Token ids of all examples; `what` names them in errors.

    Raises:
        TrainingError: one is empty, too long for the model, or has ids or a weight that make no
            sense. The message names its index.
    """
    encoded = []
    for index, example in enumerate(examples):
        where = f"{what} {index}"
        prompt = _ids(example.prompt, tokenizer.encode)
        completion = _ids(example.completion, tokenizer.encode_continuation)
        if append_eos and isinstance(example.completion, str):
            completion.append(_end(tokenizer))
        _check(where, prompt, completion, example.weight, model)
        tokens = (*prompt, *completion)
        encoded.append(Encoded(tokens, len(prompt), float(example.weight), index))
    return encoded


def _ids(given: str | Sequence[int], encode: Callable[[str], list[int]]) -> list[int]:
    return encode(given) if isinstance(given, str) else [int(token) for token in given]


def _end(tokenizer: Tokenizer) -> int:
    if not tokenizer.eos_ids:
        raise TrainingError(
            "append_eos: the model names no end-of-sequence token; set append_eos=False"
        )
    return tokenizer.eos_ids[0]


def _check(
    where: str, prompt: list[int], completion: list[int], weight: float, model: ModelConfig
) -> None:
    if not prompt:
        raise TrainingError(f"{where}: the prompt has no tokens; give it at least one (the BOS)")
    if not completion:
        raise TrainingError(f"{where}: the completion has no tokens; there is nothing to learn")
    length = len(prompt) + len(completion)
    if length > model.max_positions:
        raise TrainingError(
            f"{where}: {length} tokens, but the model has {model.max_positions} positions; "
            "shorten or remove it"
        )
    for token in (*prompt, *completion):
        if not 0 <= token < model.vocab_size:
            raise TrainingError(
                f"{where}: token id {token} is outside the vocabulary of {model.vocab_size}"
            )
    if not (math.isfinite(weight) and weight > 0):
        raise TrainingError(f"{where}: weight must be a positive number, not {weight}")


def step_batch(examples: Sequence[Encoded], config: TrainConfig, step: int) -> list[Encoded]:
    """The examples of step `step` (from 0), which depend on the seed and the step alone."""
    epoch, place = divmod(step, steps_per_epoch(len(examples), config))
    if config.shuffle:
        generator = torch.Generator().manual_seed(mix(config.seed, epoch))
        order = torch.randperm(len(examples), generator=generator).tolist()
    else:
        order = list(range(len(examples)))
    first = place * config.batch_size
    return [examples[i] for i in order[first : first + config.batch_size]]


def steps_per_epoch(count: int, config: TrainConfig) -> int:
    """Optimizer steps in a pass over `count` examples."""
    return math.ceil(count / config.batch_size)
