"""The front door: what `engine.load` gives, and how its parts work together."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
import torch

import engine
from engine import (
    LLM,
    AdapterError,
    CheckpointError,
    EngineError,
    LoraConfig,
    RequestError,
    SamplingParams,
    TrainConfig,
    TrainExample,
)
from engine.llm import default_dtype
from tests.engine.serving_setup import folder, greedy

PROMPTS = [[5 + 7 * i % 600 for i in range(n)] for n in (40, 3, 17)]
EXAMPLES = [TrainExample([1, 2, 3, 4 + i], [9, 9, 9]) for i in range(8)]
QUICK = TrainConfig(epochs=6, batch_size=4, lr=2e-2)


@pytest.fixture
def llm() -> LLM:
    return engine.load(folder("llama2"), dtype=torch.float32, cache_bytes=16 << 20)


def ids(completions: list[engine.Completion]) -> list[tuple[int, ...]]:
    return [completion.ids for completion in completions]


def test_texts_and_ids_are_one(llm: LLM) -> None:
    text = "the cat sat"
    assert ids(llm.generate([text], greedy())) == ids(
        llm.generate([llm.tokenizer.encode(text)], greedy())
    )


def test_one_set_of_weights_serves_scores_and_trains(llm: LLM) -> None:
    before = {name: id(getattr(llm.model.layers[0], name)) for name in ("qkv", "o", "down")}
    weights = llm.model.layers[0].qkv.clone()
    bare = llm.generate(PROMPTS, greedy())
    llm.adapters.new("nines", LoraConfig(rank=4))
    result = llm.train(EXAMPLES, QUICK, adapter="nines")
    assert result.losses[-1] < result.losses[0] / 2
    assert before == {name: id(getattr(llm.model.layers[0], name)) for name in before}
    assert torch.equal(llm.model.layers[0].qkv, weights)
    assert ids(llm.generate(PROMPTS, greedy())) == ids(bare)
    assert llm.generate([[1, 2, 3, 5]], greedy(3), adapter="nines")[0].ids == (9, 9, 9)


def test_training_releases_the_cache(llm: LLM) -> None:
    llm.generate(PROMPTS, greedy())
    memory = weakref.ref(llm._runner.cache.keys[0])
    llm.adapters.new("a")
    llm.train(EXAMPLES, TrainConfig(epochs=1), adapter="a")
    gc.collect()
    assert memory() is None


def test_adapters_by_name_by_row_and_in_use(llm: LLM) -> None:
    llm.adapters.new("nines", LoraConfig(rank=4))
    llm.train(EXAMPLES, QUICK, adapter="nines")
    prompt = [1, 2, 3, 5]
    bare, tuned = (llm.generate([prompt], greedy(3), adapter=a)[0].ids for a in (None, "nines"))
    assert bare != tuned
    mixed = llm.generate([prompt] * 3, greedy(3), adapter=["nines", None, "nines"])
    assert ids(mixed) == [tuned, bare, tuned]
    with llm.adapters.use("nines"):
        assert llm.generate([prompt], greedy(3))[0].ids == tuned
        scored = llm.score([prompt], [[9, 9, 9]])[0]
    assert llm.generate([prompt], greedy(3))[0].ids == bare
    assert scored == llm.score([prompt], [[9, 9, 9]], adapter="nines")[0]


def test_calls_from_several_threads_take_turns(llm: LLM) -> None:
    expected = ids(llm.generate(PROMPTS, greedy(20)))
    found: list[list[tuple[int, ...]]] = []
    calls = [
        threading.Thread(target=lambda: found.append(ids(llm.generate(PROMPTS, greedy(20)))))
        for _ in range(4)
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert found == [expected] * 4


def test_defaults(llm: LLM) -> None:
    assert llm.model.dtype == torch.float32
    assert default_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert len(llm.generate(["the"])) == 1


def test_what_a_user_gets_wrong(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder or file"):
        engine.load(tmp_path / "nowhere")
    with pytest.raises(AdapterError, match="there is no adapter 'x'; known adapters: none"):
        llm.generate(["the"], adapter="x")
    with pytest.raises(RequestError, match="put a single prompt into brackets"):
        llm.generate("the cat")
    with pytest.raises(RequestError, match=r"prompts\[0\] must be a text or a list of token ids"):
        llm.generate([1, 2, 3])  # type: ignore[list-item]
    with pytest.raises(RequestError, match=r"temperature must be a number at least 0, not '0.7'"):
        SamplingParams(temperature="0.7")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="put a single completion into brackets"):
        llm.score(["a", "b"], "no")
    with pytest.raises(AdapterError, match="name the adapter to train"):
        llm.train(EXAMPLES, adapter=None)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="2 given for 1 prompts"):
        llm.generate(["the"], [SamplingParams(), SamplingParams()])
    with pytest.raises(RequestError, match="holds no block"):
        engine.load(folder("llama2"), cache_bytes=10)
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="torch sees no GPU"):
            engine.load(folder("llama2"), device="cuda")
