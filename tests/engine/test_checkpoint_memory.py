"""Loading needs at most 1.3 times the model's own memory, whatever it is stored as."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from engine.checkpoint import required_shapes, save_hf
from engine.config import ModelConfig, config_from_hf
from tests.engine import tiny_gguf, tiny_models

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")

# 105 million numbers (210 MB in bf16), of which the embedding and the head are a third each.
CONFIG = config_from_hf(
    {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
    },
    "config.json",
)
PROGRAM = """
import sys
import torch
from engine.checkpoint import open_checkpoint
from engine.model import load_model

def status(key):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(key)]
    return int(line.split()[1]) * 1024

load_model(open_checkpoint(sys.argv[1]), torch.bfloat16, torch.device("cpu"))  # warm: imports
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
model = load_model(open_checkpoint(sys.argv[2]), torch.bfloat16, torch.device("cpu"))
print(status("VmHWM") - before)
"""


def tensors(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    for name, shape in required_shapes(config).items():
        yield name, torch.full(shape, 0.01)


def big_gguf(file: Path) -> Path:
    """Every matrix as Q8_0."""
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in tiny_gguf.metadata_of(CONFIG, "llama").items():
        tiny_gguf.add_value(writer, key, value)
    for name, shape in required_shapes(CONFIG).items():
        if len(shape) == 1:
            writer.add_tensor(tiny_gguf.gguf_name(name), np.ones(shape, np.float32))
        else:
            raw = np.ones((shape[0], shape[1] // 32 * 34), np.uint8)
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(tiny_gguf.gguf_name(name), raw, raw_dtype=kind)
    tiny_gguf.finish(writer)
    return file


@pytest.mark.parametrize("stored", ["bfloat16", "float32", "Q8_0"])
def test_peak_while_loading(stored: str, tmp_path: Path) -> None:
    small = tiny_models.make("llama2", tmp_path / "small")
    if stored == "Q8_0":
        source = big_gguf(tmp_path / "model.gguf")
    else:
        source = tmp_path / "model"
        save_hf(source, CONFIG, tensors(CONFIG), dtype=getattr(torch, stored))
    size = sum(shape.numel() for shape in map(torch.Size, required_shapes(CONFIG).values())) * 2
    assert size > 200e6
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small), str(source)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout) / size
    print(f"{stored}: peak {peak:.3f} of the model")
    assert peak <= 1.3
