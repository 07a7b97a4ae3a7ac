"""Adapters: their updates, mixed batches, and the collection's stack, merge and use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.adapters.collection import Adapters
from engine.adapters.lora import (
    TARGETS,
    Adapter,
    InferenceLora,
    LoraConfig,
    LoraPair,
    NoLora,
    TrainingLora,
    module_name,
    new_adapter,
)
from engine.checkpoint import open_checkpoint
from engine.errors import AdapterError
from engine.model import Llama, Projections, load_model
from engine.training.packing import PackedAttention
from kernels import Segments
from tests.engine.training_setup import CPU, Setup, random_ids, tiny_setup, trained_values


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return tiny_setup(tmp_path_factory.mktemp("tiny"), "qwen2")


@pytest.fixture
def adapters(tiny: Setup) -> Adapters:
    return Adapters(tiny.checkpoint, CPU)


def logits(model: Llama, lora: Projections, rows: list[list[int]]) -> Tensor:
    """`[T, V]` of the rows packed one after the other."""
    bounds = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).int()
    segments = Segments(bounds, torch.full((len(rows),), -1, dtype=torch.int32))
    positions = torch.cat([torch.arange(len(row), dtype=torch.int32) for row in rows])
    attend = PackedAttention(segments, model.config)
    tokens = torch.tensor([token for row in rows for token in row])
    with torch.no_grad():
        return model.hidden(tokens, positions, attend, lora) @ model.head.T


def alone(model: Llama, adapter: Adapter | None, row: list[int]) -> Tensor:
    return logits(model, InferenceLora([(0, len(row), adapter)]), [row])


def with_dense_update(model: Llama, folder: Path, adapter: Adapter) -> Llama:
    """The model with each `scale * b @ a` added to its weights, as a fresh copy."""
    changed = load_model(open_checkpoint(folder), model.dtype, CPU)
    fields = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "g": "gate_up", "u": "gate_up"}
    for (layer, target), pair in adapter.pairs.items():
        weight = getattr(changed.layers[layer], fields.get(target[0], "down"))
        start = {
            "k_proj": model.config.num_heads * model.config.head_dim,
            "v_proj": (model.config.num_heads + model.config.num_kv_heads) * model.config.head_dim,
            "up_proj": model.config.intermediate_size,
        }.get(target, 0)
        weight[start : start + len(pair.b)] += pair.scale * pair.b @ pair.a
    return changed


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_updates_its_own_columns(tiny: Setup, target: str) -> None:
    adapter = tiny.adapter(trained=True, targets=(target,))
    row = random_ids(20, seed=1)
    dense = logits(with_dense_update(tiny.model, tiny.folder, adapter), NoLora(), [row])
    torch.testing.assert_close(alone(tiny.model, adapter, row), dense, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(dense, alone(tiny.model, None, row), atol=1e-3)


def test_a_new_adapter_changes_nothing_and_is_drawn_as_lora_draws_it(tiny: Setup) -> None:
    adapter = tiny.adapter(seed=3)
    row = random_ids(12, seed=2)
    assert torch.equal(alone(tiny.model, adapter, row), alone(tiny.model, None, row))
    bound = tiny.model.config.hidden_size**-0.5
    a = adapter.pairs[0, "q_proj"].a
    assert a.abs().max() <= bound
    assert a.abs().mean() == pytest.approx(bound / 2, rel=0.2)
    again, other = tiny.adapter(seed=3), tiny.adapter(seed=4)
    assert torch.equal(a, again.pairs[0, "q_proj"].a)
    assert not torch.equal(a, other.pairs[0, "q_proj"].a)


def test_a_batch_mixes_rows_of_different_adapters_and_none(tiny: Setup) -> None:
    one, two = tiny.adapter(seed=1, trained=True), tiny.adapter(seed=2, trained=True, rank=3)
    rows = [random_ids(n, seed=n) for n in (5, 9, 7, 4)]
    owners = [one, None, two, two]
    bounds = [0, 5, 14, 21, 25]
    lora = InferenceLora(list(zip(bounds, bounds[1:], owners, strict=False)))
    mixed = logits(tiny.model, lora, rows)
    apart = torch.cat([alone(tiny.model, a, row) for a, row in zip(owners, rows, strict=True)])
    torch.testing.assert_close(mixed, apart, rtol=1e-5, atol=1e-5)
    assert len(lora.rows) == 2  # the neighbouring rows of `two` are computed together


def test_training_and_inference_agree(tiny: Setup) -> None:
    adapter, row = tiny.adapter(trained=True), random_ids(15, seed=5)
    trained = logits(tiny.model, TrainingLora(adapter), [row])
    torch.testing.assert_close(trained, alone(tiny.model, adapter, row), rtol=1e-4, atol=1e-5)


def test_inference_sees_new_values_at_once(tiny: Setup) -> None:
    adapter, row = tiny.adapter(trained=True), random_ids(15, seed=5)
    before, version = alone(tiny.model, adapter, row), adapter.version
    other = tiny.adapter(seed=9, trained=True)
    adapter.assign(other.pairs)
    assert adapter.version not in (version, other.version)
    assert not torch.equal(alone(tiny.model, adapter, row), before)


def test_dropout_depends_on_seed_and_place_only(tiny: Setup) -> None:
    adapter, row = tiny.adapter(trained=True), random_ids(15, seed=5)
    once, again, other = (
        logits(tiny.model, TrainingLora(adapter, 0.3, seed), [row]) for seed in (1, 1, 2)
    )
    assert torch.equal(once, again)
    assert not torch.allclose(once, other)


def test_rank_stabilised_scale() -> None:
    assert LoraConfig(16, 32).scale(16, 32) == 2.0
    assert LoraConfig(16, 32, rslora=True).scale(16, 32) == 8.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"alpha": 0.0}, "alpha must be a positive number"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"targets": ("q_proj", "lm_head")}, "targets: lm_head; choose from q_proj"),
        ({"targets": ()}, "targets: none given"),
    ],
)
def test_bad_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        LoraConfig(**values)  # type: ignore[arg-type]


def randomise(adapter: Adapter, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    adapter.assign(
        {
            key: LoraPair(p.a, 0.2 * torch.randn(p.b.shape, generator=generator), p.scale)
            for key, p in adapter.pairs.items()
        }
    )


def test_stacking_is_the_exact_weighted_sum(tiny: Setup, adapters: Adapters) -> None:
    configs = {
        "wide": LoraConfig(5, 7.0, dropout=0.1),
        "attention": LoraConfig(3, 12.0, ("q_proj", "v_proj"), rslora=True),
        "mlp": LoraConfig(2, 4.0, ("up_proj",)),
    }
    for seed, (name, config) in enumerate(configs.items()):
        randomise(adapters.new(name, config, seed=seed), seed)
    weights = {"wide": 0.5, "attention": -2.0, "mlp": 1.5}
    stacked = adapters.stack(weights, "sum")
    for key, pair in stacked.pairs.items():
        parts = [
            (adapters[n].pairs[key], w) for n, w in weights.items() if key in adapters[n].pairs
        ]
        expected = sum(w * p.scale * p.b.double() @ p.a.double() for p, w in parts if p)
        update = pair.scale * pair.b.double() @ pair.a.double()
        torch.testing.assert_close(update, expected, rtol=1e-5, atol=1e-6)
    assert stacked.pairs[0, "q_proj"].rank == 8
    assert stacked.pairs[0, "o_proj"].rank == 5
    row = random_ids(10, seed=0)
    assert alone(tiny.model, stacked, row).isfinite().all()


@pytest.mark.parametrize("family", ["smollm2", "llama2"])
def test_a_merged_folder_is_a_model_that_needs_no_adapter(family: str, tmp_path: Path) -> None:
    tiny = tiny_setup(tmp_path / "base", family)
    adapters = Adapters(tiny.checkpoint, CPU)
    randomise(adapters.new("mine", LoraConfig(4, 8.0)), 0)
    adapters.merge("mine", tmp_path / "merged")
    merged = open_checkpoint(tmp_path / "merged")
    row = random_ids(20, seed=1)
    expected = alone(tiny.model, adapters["mine"], row)
    found = logits(load_model(merged, torch.float32, CPU), NoLora(), [row])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert merged.tokenizer().encode("three blue birds") == tiny.tokenizer.encode(
        "three blue birds"
    )
    adapters.merge("mine", tmp_path / "half", dtype=torch.bfloat16)
    name = f"{module_name(1, 'up_proj')}.weight"
    assert torch.equal(open_checkpoint(tmp_path / "half").read(name), merged.read(name).bfloat16())


def test_merge_refuses_the_base_folder_and_odd_dtypes(tiny: Setup, adapters: Adapters) -> None:
    adapters.new("mine")
    with pytest.raises(AdapterError, match="is the base model's own folder"):
        adapters.merge("mine", tiny.folder)
    with pytest.raises(AdapterError, match="dtype must be float32, bfloat16 or float16"):
        adapters.merge("mine", tiny.folder / "merged", dtype=torch.int8)


def test_copy_is_independent(adapters: Adapters) -> None:
    adapters.new("one", seed=1)
    copy = adapters.copy("one", "two")
    copy.pairs[0, "q_proj"].a.zero_()
    assert adapters["one"].pairs[0, "q_proj"].a.abs().sum() > 0
    assert list(adapters) == ["one", "two"]
    assert "two" in adapters
    assert len(adapters) == 2


def test_use_sets_the_default_and_restores_it(adapters: Adapters) -> None:
    one, two = adapters.new("one"), adapters.new("two")
    assert adapters.resolve(None) is None
    with adapters.use("one") as current:
        assert current is one is adapters.resolve(None)
        with adapters.use(two):
            assert adapters.resolve(None) is two
        with adapters.use(None):
            assert adapters.resolve(None) is None
        assert adapters.resolve("two") is two
        assert adapters.resolve(None) is one
    assert adapters.current is None
    adapters.use("two")
    assert adapters.current is two
    adapters.drop("two")
    assert adapters.current is None
    assert list(adapters) == ["one"]


def test_names_are_checked(tiny: Setup, adapters: Adapters, tmp_path: Path) -> None:
    adapters.new("one")
    adapters.new("two")
    unknown = "there is no adapter 'three'; known adapters: one, two"
    for call in (
        lambda: adapters["three"],
        lambda: adapters.drop("three"),
        lambda: adapters.use("three"),
        lambda: adapters.save("three", tmp_path),
        lambda: adapters.copy("three", "four"),
        lambda: adapters.stack({"one": 1.0, "three": 1.0}, "four"),
        lambda: adapters.merge("three", tmp_path),
    ):
        with pytest.raises(AdapterError, match=unknown):
            call()
    for call in (
        lambda: adapters.new("one"),
        lambda: adapters.copy("two", "one"),
        lambda: adapters.stack({"two": 1.0}, "one"),
        lambda: adapters.load(tmp_path, "one"),
    ):
        with pytest.raises(AdapterError, match="already an adapter 'one'"):
            call()
    with pytest.raises(AdapterError, match="needs a name"):
        adapters.new("")
    with pytest.raises(AdapterError, match="at least one adapter"):
        adapters.stack({}, "none")
    foreign = tiny_setup(tmp_path / "foreign", "llama2")
    stranger = new_adapter("stranger", LoraConfig(), foreign.model.config, CPU)
    with pytest.raises(AdapterError, match="'stranger' was made for another model"):
        adapters.resolve(stranger)


def test_a_saved_adapter_comes_back(adapters: Adapters, tmp_path: Path) -> None:
    randomise(adapters.new("one", LoraConfig(3, 5.0, dropout=0.1, rslora=True)), 0)
    adapters.save("one", tmp_path / "kept")
    kept = adapters.load(tmp_path / "kept")
    assert kept.name == "kept"
    assert kept.config == adapters["one"].config
    assert torch.equal(trained_values(kept.pairs), trained_values(adapters["one"].pairs))
