"""The same decoding and training by transformers and peft, which use what memory they need."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.gpu_race.models import ALPHA, RANK, STEPS, Plan, prompts, step_timing
from bench.gpu_race.results import Timing
from bench.gpu_race.workbench import Job, Workbench
from engine.config import config_to_hf

SIDE = "transformers"


class _Peer:
    """A model of random weights as transformers makes it."""

    def __init__(self, bench: Workbench) -> None:
        self.bench, self.plan = bench, Plan.of(bench)

    def _make(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        settings = config_to_hf(self.plan.model, self.bench.dtype)
        config = LlamaConfig(**settings)
        config._attn_implementation = "sdpa"
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.bench.dtype)
        try:
            with self.bench.device:
                return LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)

    @cached_property
    def model(self) -> Any:
        model = self._make().eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model

    def decode(self, batch: int) -> Timing:
        """New tokens at the median of the times between them."""
        plan = self.plan
        ids = torch.tensor(prompts(plan, batch, 0), device=self.bench.device)
        times: list[float] = []

        def note(ids: Tensor, scores: Tensor) -> Tensor:
            self.bench.synchronize()
            times.append(time.perf_counter())
            return scores

        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=plan.new_tokens,
                min_new_tokens=plan.new_tokens,
                do_sample=True,
                top_k=0,
                logits_processor=[note],
            )
        step = statistics.median(b - a for a, b in pairwise(times))
        return Timing(
            plan.decode_name(batch),
            plan.step_bytes(batch) * plan.new_tokens,
            "GB/s",
            {SIDE: step * plan.new_tokens},
            tokens=batch * plan.new_tokens,
        )

    @cached_property
    def tuned(self) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return get_peft_model(self._make(), config).train()

    def train(self, at_once: int) -> Timing:
        """AdamW steps in bf16 autocast, `at_once` examples at a time."""
        plan, bench = self.plan, self.bench
        model = self.tuned
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float()
        optimizer = torch.optim.AdamW(trained, lr=2e-4)
        ids = torch.tensor(prompts(plan, plan.step_examples * STEPS, 0), device=bench.device)
        labels = ids.clone()
        labels[:, : plan.shared] = -100
        targets = plan.step_examples * (plan.context - plan.shared)
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats(bench.device)
        ends: list[float] = []
        for step in zip(*(x.split(plan.step_examples) for x in (ids, labels)), strict=True):
            for some, wanted in zip(*(x.split(at_once) for x in step), strict=True):
                with torch.autocast(bench.device.type, bench.dtype):
                    loss = model(
                        input_ids=some, labels=wanted, num_items_in_batch=targets, use_cache=False
                    ).loss
                loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bench.synchronize()
            ends.append(time.perf_counter())
        return step_timing(bench, plan, plan.train_name(at_once), f"{SIDE}+peft", ends)


def decoding(bench: Workbench) -> Iterator[Job]:
    peer = _Peer(bench)
    for batch in peer.plan.batches:
        yield peer.plan.decode_name(batch), partial(peer.decode, batch)


def training(bench: Workbench) -> Iterator[Job]:
    peer = _Peer(bench)
    for at_once in (peer.plan.micro_examples, 2 * peer.plan.micro_examples):
        yield peer.plan.train_name(at_once), partial(peer.train, at_once)
