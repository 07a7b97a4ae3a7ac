"""Recipes, layers and the values of settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest

from selfguide.errors import UserError
from selfguide.method.filters import INPUT_FILTERS, OUTPUT_FILTERS
from selfguide.prompts.prompts import TEMPLATES
from selfguide.settings import (
    FILTERS,
    Settings,
    Stage,
    build_settings,
    recipe,
    stage_settings,
)


def one(key: str, value: Any) -> Any:
    return getattr(build_settings({}, {key: value}, where=["run.yaml"]), key)


def test_later_layers_win_over_earlier_ones_and_the_recipe() -> None:
    paper = recipe("paper", classification=True)
    layers = [{"epochs": "5", "votes": "4", "lr": "1e-3"}, {"votes": 7}, {"lr": 0.5}]
    settings = build_settings(paper, *layers, where=["task.yaml", "run.yaml", "command line"])
    assert (settings.epochs, settings.votes, settings.lr) == (5, 7, 0.5)
    assert settings.generator == "meta"


def test_the_papers_recipe() -> None:
    labelled = build_settings(recipe("paper", classification=True), where=[])
    free = build_settings(recipe("paper", classification=False), where=[])
    assert (labelled.temperature, free.temperature) == (0.6, 1.0)
    for settings in (labelled, free):
        assert (settings.round_size, settings.max_candidates, settings.top_k) == (10, 400, 40)
        votes = (settings.votes, settings.vote_temperature, settings.vote_top_k)
        assert votes == (10, 0.2, 10)
        assert settings.min_agreement == 0.3
        assert (settings.prompt, settings.epochs, settings.decision) == ("few_shot", 3, "greedy")
        assert "round_trip" not in settings.filters
    assert build_settings(recipe("default", classification=True), where=[]) == Settings(trainings=3)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("pairs", "8", 8),
        ("pairs", 8.0, 8),
        ("lr", "1e-4", 1e-4),
        ("lr", 1, 1.0),
        ("limit", "none", None),
        ("limit", None, None),
        ("patience", "null", None),
        ("device", "cuda:1", "cuda:1"),
        ("filters", "noise, length", ("noise", "length")),
        ("filters", ["noise"], ("noise",)),
        ("filters", "", ()),
        ("annotator", "vote", "vote"),
        ("out", "runs/a b", "runs/a b"),
    ],
)
def test_values_take_their_types(key: str, value: Any, expected: Any) -> None:
    got = one(key, value)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pairs", "many", "run.yaml: pairs: expected a whole number from 1 to 1000000; got 'many'"),
        ("pairs", "0", "expected a whole number from 1 to 1000000; got '0'"),
        ("pairs", 2.5, "got 2.5"),
        ("pairs", float("inf"), "got inf"),
        ("pairs", True, "got True"),
        ("lr", "nan", "expected a number from 1e-08 to 1, or none; got 'nan'"),
        ("example_weight", "inf", "expected a number from 0; got 'inf'"),
        ("limit", "all", "expected a whole number from 1, or none; got 'all'"),
        ("device", "gpu", "expected cpu, cuda or cuda:N, or none; got 'gpu'"),
        ("generator", "recrod", "one of record, reverse, meta; got 'recrod'"),
        ("filters", "noise,lenght", "got 'noise,lenght' (did you mean length?)"),
        ("filters", ["noise", "lenght"], "(did you mean length?)"),
        ("filters", "none", "or an empty text for none"),
        ("filters", {"noise": 1}, "expected some of noise"),
        ("filters", 3, "expected some of noise"),
        ("rank", "100000", "expected a whole number from 1 to 1024; got '100000'"),
        ("model", " ", "expected text"),
        ("model", None, "expected text; got None"),
        ("epoch", 3, "run.yaml: unknown setting epoch (did you mean epochs?)"),
    ],
)
def test_what_is_not_allowed_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        one(key, value)
    assert message in str(caught.value)


def test_an_unknown_recipe() -> None:
    with pytest.raises(UserError, match=r"papr is none of default, paper \(did you mean paper\?\)"):
        recipe("papr", classification=False)


def test_fewer_pairs_than_the_least_are_allowed_unless_said_otherwise() -> None:
    assert build_settings({}, {"pairs": 5}, where=["command line"]).at_least == 5
    assert build_settings({}, {"max_candidates": 3}, where=["command line"]).at_least == 3
    with pytest.raises(UserError, match=r"run.yaml: at_least: 20 can never be reached"):
        build_settings({}, {"at_least": 20}, {"pairs": 5}, where=["run.yaml", "command line"])


def test_every_setting_shapes_one_stage_and_its_default_is_allowed() -> None:
    stages = [stage_settings(Settings(), stage) for stage in get_args(Stage)]
    assert sum(map(len, stages)) == len(fields(Settings))
    defaults = {each.name: each.default for each in fields(Settings)}
    assert build_settings({}, defaults, where=["defaults"]) == Settings()
    for classification in (True, False):
        paper = recipe("paper", classification=classification)
        assert build_settings({}, paper, where=["paper"]) == build_settings(paper, where=[])


def test_choices_are_those_that_the_method_knows() -> None:
    assert set(FILTERS) == {*INPUT_FILTERS, *OUTPUT_FILTERS} - {"annotation"}
    for template in TEMPLATES:
        assert one("template", template) == template
