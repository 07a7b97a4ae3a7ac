"""The engine: one open model in memory that generates, scores and is finetuned.

llm = engine.load("smollm2-135m")
llm.generate(prompts, SamplingParams(...), adapter=None)
llm.score(prompts, completions)
llm.train(examples, TrainConfig(...), adapter="mine")
llm.adapters.new("mine", LoraConfig(...))
"""

import engine.neighbour  # noqa: F401  (stops here if `kernels` is another distribution's)
from engine.adapters.lora import Adapter, LoraConfig
from engine.errors import (
    AdapterError,
    CheckpointError,
    EngineError,
    RequestError,
    TokenizerError,
    TrainingError,
)
from engine.llm import LLM, load
from engine.serving.progress import Progress
from engine.serving.sample import Completion
from engine.serving.sampling_params import SamplingParams
from engine.serving.score import Scored
from engine.training.config import TrainConfig, TrainExample, TrainProgress, TrainResult

__all__ = [
    "LLM",
    "Adapter",
    "AdapterError",
    "CheckpointError",
    "Completion",
    "EngineError",
    "LoraConfig",
    "Progress",
    "RequestError",
    "SamplingParams",
    "Scored",
    "TokenizerError",
    "TrainConfig",
    "TrainExample",
    "TrainProgress",
    "TrainResult",
    "TrainingError",
    "load",
]
