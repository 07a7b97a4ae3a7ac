"""The engine's front door: one model in memory that generates, scores and is finetuned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engine.adapters.collection import Adapters
from engine.adapters.lora import Adapter
from engine.checkpoint import Checkpoint, open_checkpoint
from engine.errors import AdapterError, EngineError
from engine.memory import free_memory, give_back
from engine.model import Llama, load_model
from engine.serving.generate import generate
from engine.serving.kv_cache import KVCache
from engine.serving.progress import Progress
from engine.serving.prompts import Text
from engine.serving.runner import Runner
from engine.serving.sample import Completion
from engine.serving.sampling_params import SamplingParams
from engine.serving.scheduler import Stats
from engine.serving.score import Scored, score
from engine.training.config import Progress as TrainingProgress
from engine.training.config import TrainConfig, TrainExample, TrainResult
from engine.training.train import train
from kernels.quantized import KINDS, Kind

AdapterChoice = str | Adapter | None
"""An adapter's name, an adapter, or None for the one in use (`llm.adapters.use`)."""

_CACHE_SHARE = 0.4  # of the memory that is free once the weights are loaded
_CACHE_CAP_CPU = 4 << 30


def load(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    cache_bytes: int | None = None,
    quantize: Kind | None = None,
) -> LLM:
    """Reads a model.

    Args:
        source: "smollm2-135m" (built in: fetched once, checked and cached), a HF folder, a `.gguf`
            file, or a hub id `org/name`.
        dtype: of weights and activations; None for bfloat16 where the device computes in it, else
            float32.
        device: None for the first GPU if there is one, else the CPU.
        revision: branch, tag or commit of a hub id.
        cache_bytes: the most memory that the KV cache may take; None plans it from what is free.
        quantize: "int8", "int4" or "nf4" rounds the blocks' linears to 8 or 4 bits as they are read
            (`kernels.quantize`), so that a large model and the training of its adapters fit a small
            card: 7B take 4.0 GB with 4 bits. None keeps them in `dtype`.

    Raises:
        EngineError: no such `device` or `quantize`.
        CheckpointError: the model is not there or not sound.
        TokenizerError: its tokenizer is not.
    """
    if quantize is not None and quantize not in KINDS:
        raise EngineError(f"quantize: expected one of {', '.join(KINDS)} or None, got {quantize!r}")
    checkpoint = open_checkpoint(source, revision=revision)
    place = _device(device)
    model = load_model(checkpoint, dtype or default_dtype(place), place, quantize)
    return LLM(model, checkpoint, cache_bytes=cache_bytes)


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for it, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise EngineError(f"device {device}: there is no such device; use cpu or cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise EngineError(f"device {device}: torch sees no GPU; use device='cpu'")
    return chosen


class LLM:
    """A model, its tokenizer, its adapters and its KV cache.

    There is one copy of the weights; generation, scoring and training share it, and adapters are
    switched on and off beside it. The cache keeps the prefixes of earlier calls; training releases
    it and the next call takes it again.

    Args:
        model: the weights.
        checkpoint: the files they came from.
        cache_bytes: see `load`.

    Attributes:
        tokenizer: text to ids, ids to text, chat templates.
        adapters: new, load, save, copy, drop, stack, merge, use.
    """

    def __init__(
        self, model: Llama, checkpoint: Checkpoint, *, cache_bytes: int | None = None
    ) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer()
        self.adapters = Adapters(checkpoint, model.device)
        budget = _plan_cache(model.device) if cache_bytes is None else cache_bytes
        cache = KVCache(model.config, budget, model.dtype, model.device)
        self._runner = Runner(model, self.tokenizer, cache)

    @property
    def stats(self) -> Stats:
        """Counts over all calls so far: tokens asked for, found in the cache, computed, drawn."""
        return self._runner.stats

    def generate(
        self,
        prompts: Sequence[Text],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        adapter: AdapterChoice | Sequence[AdapterChoice] = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Completion]:
        """Continues prompts; see `engine.serving.generate.generate`.

        Args:
            prompts: texts or token ids.
            params: one for all or one for each prompt; None for the defaults.
            adapter: one for all or one for each prompt.
            progress: called a few times a second.

        Returns:
            `params.n` completions for each prompt, in the prompts' order.

        Raises:
            RequestError: a request makes no sense. One that is merely too long for the context gets
                a completion whose finish_reason is "error", and the rest go on.
        """
        chosen = self._resolve(adapter)
        return generate(self._runner, prompts, params or SamplingParams(), chosen, progress)

    def score(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text] | Sequence[Sequence[Text]],
        adapter: AdapterChoice | Sequence[AdapterChoice] = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Scored] | list[list[Scored]]:
        """Log-probabilities of completions that follow prompts: `engine.serving.score.score`."""
        return score(self._runner, prompts, completions, self._resolve(adapter), progress)

    def train(
        self,
        examples: Sequence[TrainExample],
        config: TrainConfig | None = None,
        *,
        adapter: str | Adapter,
        eval_examples: Sequence[TrainExample] = (),
        progress: TrainingProgress | None = None,
    ) -> TrainResult:
        """Finetunes an adapter on examples; see `engine.training.train.train`.

        The KV cache's memory is released first: prefixes of earlier calls are forgotten.
        """
        trained = self.adapters.resolve(adapter)
        if trained is None:
            raise AdapterError("train: name the adapter to train; llm.adapters.new makes one")
        self._runner.release()
        try:
            return train(
                self.model,
                self.tokenizer,
                trained,
                examples,
                config or TrainConfig(),
                eval_examples=eval_examples,
                progress=progress,
                fingerprint=self.checkpoint.fingerprint(),
            )
        finally:
            give_back()

    def _resolve(
        self, adapter: AdapterChoice | Sequence[AdapterChoice]
    ) -> Adapter | list[Adapter | None] | None:
        if adapter is None or isinstance(adapter, str | Adapter):
            return self.adapters.resolve(adapter)
        return [self.adapters.resolve(each) for each in adapter]


def _plan_cache(device: torch.device) -> int:
    """Bytes for the KV cache: a share of what is free, on a CPU no more than is ever useful."""
    budget = int(_CACHE_SHARE * free_memory(device))
    return min(budget, _CACHE_CAP_CPU) if device.type == "cpu" else budget
