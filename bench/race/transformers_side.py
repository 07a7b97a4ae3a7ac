"""transformers and peft, used as their documentation would have it and without needless work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

_IGNORED = -100
_PADDING = 0  # masked everywhere
_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Transformers:
    """A transformers folder in bf16 with SDPA attention."""

    def __init__(self, model: str) -> None:
        libraries = (torch, transformers, peft)
        self.versions = {library.__name__: str(library.__version__) for library in libraries}
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self.model.eval().requires_grad_(False)
        # Ends nowhere: both sides write the same number of tokens, with no processor to enforce it.
        self.model.generation_config = transformers.GenerationConfig(pad_token_id=_PADDING)
        self.tuned: Any = None

    @torch.inference_mode()
    def generate(self, job: dict[str, Any], batch: int | None) -> list[list[int]]:
        """`batch` prompts at a time, each repeated `samples` times by `generate` itself."""
        torch.manual_seed(job["seed"])
        greedy = job["temperature"] == 0
        how: dict[str, Any] = {"do_sample": False}
        if not greedy:
            how = {"do_sample": True, "temperature": job["temperature"], "top_k": job["top_k"]}
        samples: list[list[int]] = []
        for prompts in _chunks(job["prompts"], batch or 1):
            ids, mask = _padded(prompts, left=True)
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=job["new_tokens"],
                num_return_sequences=job["samples"],
                use_cache=True,
                **how,
            )
            samples += out[:, ids.shape[1] :].tolist()
        return samples

    def new_adapter(self, job: dict[str, Any]) -> None:
        """LoRA on all linears; peft keeps its weights in fp32 beside the bf16 model."""
        if self.tuned is not None:
            self.model = self.tuned.unload()
        config = peft.LoraConfig(
            r=job["rank"],
            lora_alpha=job["alpha"],
            lora_dropout=0.0,
            target_modules=_LINEARS,
            task_type="CAUSAL_LM",
        )
        self.tuned = peft.get_peft_model(self.model, config, autocast_adapter_dtype=True)
        self.tuned.train()

    def train(self, job: dict[str, Any], batch: int | None) -> list[float]:
        """Micro-batches of `batch` examples; a step's are sorted by length to save padding."""
        weights = [p for p in self.tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=job["learning_rate"], weight_decay=0.0)
        losses = []
        for examples in _chunks(job["examples"], job["step_examples"]):
            losses.append(self._accumulate(examples, batch or 1))
            torch.nn.utils.clip_grad_norm_(weights, job["clip"])
            optimizer.step()
            optimizer.zero_grad()
        return losses

    def _accumulate(self, examples: Sequence[tuple[list[int], list[int]]], batch: int) -> float:
        """Gradients of the mean loss of all of a step's target tokens; that loss."""
        targets = sum(len(completion) for _, completion in examples)
        by_length = sorted(examples, key=lambda example: len(example[0]) + len(example[1]))
        total = 0.0
        for micro in _chunks(by_length, batch):
            ids, mask = _padded([prompt + completion for prompt, completion in micro])
            labels = ids.masked_fill(mask == 0, _IGNORED)
            for row, (prompt, _) in zip(labels, micro, strict=True):
                row[: len(prompt)] = _IGNORED
            with torch.autocast("cpu", torch.bfloat16):  # fp32 LoRA weights, products in bf16
                loss = self.tuned(
                    input_ids=ids,
                    attention_mask=mask,
                    labels=labels,
                    num_items_in_batch=targets,
                    use_cache=False,
                ).loss
            loss.backward()
            total += loss.item()
        return total


def _chunks(items: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), count):
        yield items[start : start + count]


def _padded(sequences: Sequence[list[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, `[B, longest]` int64."""
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), _PADDING)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if left else slice(len(sequence))
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = 1
    return ids, mask
