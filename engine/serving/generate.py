"""Generation: prompts in, completions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.adapters.lora import Adapter
from engine.errors import RequestError
from engine.serving.constraint import TrieNode, token_trie
from engine.serving.progress import Meter, Progress
from engine.serving.prompts import Text, check_ids, encode_prompts, one_per_prompt
from engine.serving.runner import Runner
from engine.serving.sample import Completion, Request, Sample
from engine.serving.sampling_params import SamplingParams
from engine.serving.scheduler import Scheduler, Step
from kernels.sampling import Biases, IdLists, SampleParams, sample, top_logprobs
from kernels.upload import upload


def generate(
    runner: Runner,
    prompts: Sequence[Text],
    params: SamplingParams | Sequence[SamplingParams],
    adapter: Adapter | Sequence[Adapter | None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Completion]:
    """Continues prompts.

    What comes of a request depends on its prompt, its params and its adapter alone.

    Args:
        runner: model, tokenizer and cache.
        prompts: texts, or token ids.
        params: one for all, or a list of one for each prompt.
        adapter: the same.
        progress: called a few times a second, and at the end.

    Returns:
        The completions of the first prompt (`n` of them), then those of the second, and so on. A
        prompt that can never fit gets completions with finish_reason "error".

    Raises:
        RequestError: a prompt or a parameter makes no sense.
    """
    rows = encode_prompts(prompts, runner.tokenizer, runner.model.config.vocab_size)
    knobs = one_per_prompt("params", params, len(rows))
    adapters = one_per_prompt("adapter", adapter, len(rows))
    rules = {id(each): _rules(runner, each) for each in knobs}
    requests = [
        _request(runner, index, *parts, *rules[id(parts[1])])
        for index, parts in enumerate(zip(rows, knobs, adapters, strict=True))
    ]
    return _Generation(runner, requests, progress).run()


def _rules(runner: Runner, params: SamplingParams) -> tuple[frozenset[int], TrieNode | None]:
    """The ids that end a text, and the tree of what is allowed, by params that fit the model."""
    config = runner.model.config
    for name, ids in (("stop_ids", params.stop_ids), ("logit_bias", tuple(params.logit_bias))):
        check_ids(ids, config.vocab_size, name)
    if params.logprobs is not None and params.logprobs > config.vocab_size:
        raise RequestError(
            f"logprobs must be at most the vocabulary's {config.vocab_size}, not {params.logprobs}"
        )
    known = {*config.eos_token_ids, *runner.tokenizer.eos_ids}
    eos = sorted(token for token in known if token < config.vocab_size)
    trie = None
    if params.allowed is not None:
        trie = token_trie(params.allowed, runner.tokenizer, eos, config.vocab_size)
    return frozenset(params.stop_ids).union(() if params.ignore_eos else eos), trie


def _request(
    runner: Runner,
    index: int,
    prompt: list[int],
    params: SamplingParams,
    adapter: Adapter | None,
    end_ids: frozenset[int],
    trie: TrieNode | None,
) -> Request:
    return Request(
        index=index,
        prompt=prompt,
        params=params,
        adapter=adapter,
        tokenizer=runner.tokenizer,
        limit=min(params.max_tokens, runner.context - len(prompt)),
        end_ids=end_ids,
        trie=trie,
    )


class _Generation:
    """One call of `generate`."""

    def __init__(
        self,
        runner: Runner,
        requests: list[Request],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.runner, self.requests = runner, requests
        self.scheduler: Scheduler[Sample] = runner.scheduler()
        self.results: list[list[Completion | None]] = [[None] * r.params.n for r in requests]
        self.meter = Meter(progress, sum(r.params.n for r in requests))
        self.done = self.generated = 0

    def run(self) -> list[Completion]:
        for request in self.requests:
            if request.limit > 0:
                self.scheduler.add(request.sample(0))
            else:
                self._refuse(request)
        self.meter.update(self.done, 0)
        self.runner.run(self.scheduler, self._use)
        return [result for results in self.results for result in results if result is not None]

    def _refuse(self, request: Request) -> None:
        error = (
            f"prompts[{request.index}] has {len(request.prompt)} tokens, "
            f"which leaves no room in a context of {self.runner.context}"
        )
        for number in range(request.params.n):
            one = request.sample(number)
            one.finish_reason, one.error = "error", error
            self._record(one)

    def _use(self, step: Step[Sample], hidden: Tensor) -> None:
        """Draws the next token of every sample whose tokens are all computed."""
        samples, rows = self._due(step)
        if not samples:
            self.meter.update(self.done, self.generated)
            return
        drawn: list[Tensor] = []
        for part, logits, which in self.runner.logits(hidden, rows):
            if which is not None:
                logits = logits[upload([which], logits.device)[0]]
            found = sample(logits, _sample_params(samples[part], logits.device))
            drawn.append(torch.stack([x.double() for x in found]))
            _note_top_logprobs(samples[part], logits)
        tokens, logprobs = torch.cat(drawn, 1).tolist()  # the step's only wait for the device
        # Backwards, because the first sample of a prompt holds the blocks that the others fork.
        for one, token, logprob in reversed(list(zip(samples, tokens, logprobs, strict=True))):
            self._advance(one, int(token), logprob)
        self.generated += len(samples)
        self.runner.stats.generated += len(samples)
        self.meter.update(self.done, self.generated)

    def _due(self, step: Step[Sample]) -> tuple[list[Sample], np.ndarray]:
        """Samples to draw for, and the row of the batch that each is drawn from."""
        samples: list[Sample] = []
        rows: list[int] = []
        for index in np.flatnonzero(step.done):
            one = step.sequences[index]
            width, one.width = one.width, 1
            samples.append(one)
            samples += [one.request.sample(number, leader=one) for number in range(1, width)]
            rows += [int(step.bounds[index + 1]) - 1] * width
        return samples, np.array(rows, np.int64)

    def _advance(self, one: Sample, token: int, logprob: float) -> None:
        """Goes on with the token drawn for a sample, or takes the sample out."""
        running = one.slot >= 0
        if one.accept(token, logprob):
            if running:
                self.scheduler.finish(one)
            self._record(one)
        elif running:
            self.scheduler.append(one, [token])
        elif one.leader is not None:
            one.tokens.append(token)
            self.scheduler.fork(one.leader, one)

    def _record(self, one: Sample) -> None:
        index, number = one.place
        self.results[index][number] = one.completion()
        self.done += 1


def _sample_params(samples: list[Sample], device: torch.device) -> SampleParams:
    """How the next token of each sample is drawn, by its own request and nothing else."""
    knobs = [one.request.params for one in samples]

    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device="cpu")

    params = SampleParams(
        temperature=column([k.temperature for k in knobs], torch.float32),
        top_k=column([k.top_k for k in knobs], torch.int32),
        top_p=column([k.top_p for k in knobs], torch.float32),
        min_p=column([k.min_p for k in knobs], torch.float32),
        repetition_penalty=column([k.repetition_penalty for k in knobs], torch.float32),
        frequency_penalty=column([k.frequency_penalty for k in knobs], torch.float32),
        presence_penalty=column([k.presence_penalty for k in knobs], torch.float32),
        seed=column([one.seed for one in samples], torch.int64),
        position=column([len(one.ids) for one in samples], torch.int64),
        bias=Biases.of([k.logit_bias for k in knobs], "cpu"),
        seen=IdLists.of([one.seen for one in samples], "cpu"),
        generated=IdLists.of([one.generated for one in samples], "cpu"),
        allowed=IdLists.of([one.allowed for one in samples], "cpu"),
    )
    return params.to(device)


def _note_top_logprobs(samples: list[Sample], logits: Tensor) -> None:
    """Notes the most likely tokens of each position where they are asked for."""
    asked = [i for i, one in enumerate(samples) if one.request.params.logprobs]
    if not asked:
        return
    counts = [samples[i].request.params.logprobs or 0 for i in asked]
    values, ids = top_logprobs(logits[asked], max(counts))
    for i, count, row, tokens in zip(asked, counts, values.tolist(), ids.tolist(), strict=True):
        top = zip(tokens[:count], row[:count], strict=True)
        samples[i].top_logprobs.append(dict(top))
