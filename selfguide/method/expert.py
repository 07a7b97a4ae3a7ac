"""The expert: what answers a task's questions, in a form that a folder keeps."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine import LLM
from engine.checkpoint import Checkpoint
from engine.files import write_json
from engine.text.tokenizer import Tokenizer
from kernels.quantized import Kind
from selfguide.errors import UserError
from selfguide.method.answering import Answerer, Decision, OnProgress, Scores, label_bias
from selfguide.metrics.parse import parse_label
from selfguide.observer import Observer
from selfguide.prompts import Asking, Prompts
from selfguide.tasks import Example, Task

ADAPTER = "expert"
"""The name of the expert's adapter in `llm.adapters`, and where folders say `adapter/`."""

FILE = "expert.json"
BIAS_INPUTS = 100
"""Inputs that a label bias is estimated on, at most."""

Unlabelled = Sequence[tuple[str, str | None]]
"""Inputs without a known output, each with the label that it was asked for, if any."""


@dataclass(frozen=True)
class Answer:
    """What was answered to one input.

    Attributes:
        text: the output; the label where labels were scored; "" where the input does not fit.
        label: of a classification task; None where the text states none.
        probabilities: of the labels, where they were scored.
    """

    text: str
    label: str | None = None
    probabilities: dict[str, float] | None = None


@dataclass(frozen=True)
class Way:
    """A way to answer: how the model is asked, and how its answer is read.

    Args:
        asking: prompt and adapter.
        decision: "greedy" text, or the likeliest label by "direct" scores, by those with the label
            bias removed, or by the "channel".
        bias: with "bias_removed", what is taken from each label's score.
    """

    asking: Asking
    decision: Decision
    bias: Mapping[str, float] = field(default_factory=dict)

    def answer(
        self, answerer: Answerer, inputs: Sequence[str], progress: OnProgress = None
    ) -> list[Answer]:
        """An answer for each input."""
        labels = list(answerer.task.labels)
        if self.decision == "greedy":
            texts = answerer.greedy(inputs, self.asking, progress)
            return [Answer(text, parse_label(text, labels)) for text in texts]
        if self.decision == "channel":
            scores = answerer.channel_scores(inputs, self.asking.adapter, progress)
        else:
            scores = answerer.label_scores(inputs, self.asking, progress)
        bias = [self.bias.get(label, 0.0) for label in labels]
        return [likeliest(row, labels) for row in scores - np.array(bias)]


def likeliest(scores: Scores, labels: Sequence[str]) -> Answer:
    """The label of the highest score, with the softmax of all; nothing if one is not a number."""
    if np.isnan(scores).any():
        return Answer("")
    powers = np.exp(scores - scores.max())
    shares = (powers / powers.sum()).tolist()
    best = labels[int(scores.argmax())]
    return Answer(best, best, dict(zip(labels, shares, strict=True)))


def draw_unlabelled(unlabelled: Unlabelled, seed: int) -> Unlabelled:
    """At most `BIAS_INPUTS` of the inputs, in their order."""
    count = min(len(unlabelled), BIAS_INPUTS)
    order = sorted(random.Random(seed).sample(range(len(unlabelled)), count))
    return [unlabelled[at] for at in order]


def estimate_bias(
    answerer: Answerer,
    asking: Asking,
    unlabelled: Unlabelled,
    seed: int,
    progress: OnProgress = None,
) -> dict[str, float]:
    """The label bias of a way to ask, on at most `BIAS_INPUTS` inputs; {} if none is of use."""
    labels = list(answerer.task.labels)
    chosen = draw_unlabelled(unlabelled, seed)
    scores = answerer.label_scores([text for text, _ in chosen], asking, progress)
    usable = [at for at, row in enumerate(scores) if not np.isnan(row).any()]
    if not usable:
        return {}
    bias = label_bias(scores[usable], [chosen[at][1] for at in usable])
    return dict(zip(labels, map(float, bias), strict=True))


@dataclass(frozen=True)
class Expert:
    """A finetuned adapter's way to answer its task: all that prediction needs beside the weights.

    Args:
        task: what prompts show of it: instruction, examples, labels, stop.
        way: with `ADAPTER`.
        model: the base model, as the user named it.
        fingerprint: the base model's (`Checkpoint.fingerprint`).
        prompt: the prompt of a fixed input. Where another version makes another prompt, the expert
            would be asked what it was not trained on.
        quantize: what the base model's weights were rounded to.
    """

    task: Task
    way: Way
    model: str
    fingerprint: str
    prompt: str
    quantize: Kind | None = None

    @classmethod
    def of(cls, answerer: Answerer, way: Way, model: str) -> Expert:
        """The expert that answers `answerer`'s task with the adapter `ADAPTER` of its model."""
        prompts = answerer.prompts
        task = answerer.task
        shown = Task(
            name=task.name,
            instruction=task.instruction,
            examples=task.examples,
            labels=dict(task.labels),
            metric=task.metric,
            stop=prompts.stop,
            source=task.source,
        )
        llm = answerer.llm
        fingerprint, quantize = llm.checkpoint.fingerprint(), llm.model.quantized
        return cls(shown, way, model, fingerprint, _sample_prompt(prompts, way), quantize)

    def answer(self, answerer: Answerer, inputs: Sequence[str], observer: Observer) -> list[Answer]:
        """An answer for each input; the answerer is `attach`'s, or the one it was trained with."""
        return self.way.answer(answerer, inputs, observer.watch("answering"))

    def attach(self, llm: LLM, folder: Path) -> Answerer:
        """The model with the adapter of `folder` at hand, ready to answer.

        Raises:
            UserError: the expert belongs to another model, or to other prompt templates.
            AdapterError: the adapter cannot be read.
        """
        prompts = self.prompts(llm.checkpoint, llm.tokenizer, folder)
        if ADAPTER not in llm.adapters:
            llm.adapters.load(folder / "adapter", ADAPTER)
        return Answerer(llm, self.task, prompts)

    def prompts(self, checkpoint: Checkpoint, tokenizer: Tokenizer, folder: Path) -> Prompts:
        """The prompts that it was trained with.

        Args:
            checkpoint: the base model's files.
            tokenizer: theirs.
            folder: the expert's own, for messages.

        Raises:
            UserError: the expert belongs to another model, or to other prompt templates.
        """
        path = folder / FILE
        if checkpoint.fingerprint() != self.fingerprint:
            raise UserError(
                f"{path}: the expert belongs to the model {self.model}, and {checkpoint.path} "
                "is another or was changed; load the one it was trained with"
            )
        prompts = Prompts(self.task, tokenizer)
        if _sample_prompt(prompts, self.way) != self.prompt:
            raise UserError(
                f"{path}: the expert was trained with other prompt templates than this version's; "
                "train it again"
            )
        return prompts

    def save(self, folder: Path) -> None:
        """Writes `expert.json`."""
        task, asking = self.task, self.way.asking
        values = {
            "task": task.name,
            "instruction": task.instruction,
            "examples": [{"input": e.input, "output": e.output} for e in task.examples],
            "labels": dict(task.labels),
            "metric": task.metric,
            "stop": list(task.stop),
            "source": task.source,
            "template": asking.template,
            "prompt": "few_shot" if asking.shots else "zero_shot",
            "decision": self.way.decision,
            "bias": dict(self.way.bias),
            "adapter": "adapter",
            "model": self.model,
            "model_fingerprint": self.fingerprint,
            "quantize": self.quantize,
            "sample_prompt": self.prompt,
        }
        write_json(folder / FILE, values)

    @classmethod
    def load(cls, folder: Path) -> Expert:
        """Reads `expert.json`.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = folder / FILE
        try:
            return cls._read(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; finish the run that makes it first") from None
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        except KeyError as error:
            raise UserError(f"{path}: the key {error} is missing; train the expert again") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error}); train the expert again") from None

    @classmethod
    def _read(cls, values: dict[str, Any]) -> Expert:
        task = Task(
            name=values["task"],
            instruction=values["instruction"],
            examples=tuple(Example(e["input"], e["output"]) for e in values["examples"]),
            labels=values["labels"],
            metric=values["metric"],
            stop=tuple(values["stop"]),
            source=values["source"],
        )
        bias = {label: float(value) for label, value in values["bias"].items()}
        if not all(map(math.isfinite, bias.values())):
            raise ValueError("bias is not finite")
        asking = Asking(values["template"], values["prompt"] == "few_shot", ADAPTER)
        way = Way(asking, values["decision"], bias)
        base = values["model"], values["model_fingerprint"]
        return cls(task, way, *base, values["sample_prompt"], values.get("quantize"))


def _sample_prompt(prompts: Prompts, way: Way) -> str:
    if way.decision == "channel":
        return prompts.record(prompts.task.examples, next(iter(prompts.task.labels)))
    return prompts.answer("INPUT", way.asking)
