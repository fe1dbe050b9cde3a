"""Configuration: settings change fields and nothing else, hashes change with what determines a number."""

import dataclasses

import pytest

from mtlprune_bench import STANDARD, AtLeast, Labels, Method, Recipe, UsageError, once, saliency
from mtlprune_bench.runs.config import Engine, RunConfig, describe, digest, override
from mtlprune_bench.runs.request import merge_settings, parse_settings


@dataclasses.dataclass(frozen=True)
class Settings:
    width: int = 64
    rates: tuple[int, ...] = (1, 2)


def config(**changes):
    return RunConfig(
        **{
            "method": Method(name="toy", score=saliency(), schedule=once()),
            "sparsity": 0.9,
            "seed": 0,
            "dataset": "data",
            "data": "fingerprint",
            "labels": (Labels("task", classes=3),),
            "loss_weights": {"task": 1.0},
            "model": "model",
            "model_settings": Settings(),
            "protocol": STANDARD,
            "train": Recipe(),
            "finetune": None,
            **changes,
        }
    )


GOLDEN = {
    "toy-data-0.9-s0": config(),
    "toy-data-0.5-s3": config(sparsity=0.5, seed=3, train=Recipe(lr=1e-4), model_settings=Settings(rates=(6,))),
    "ratio-data-0.7-s1": config(
        method=Method(
            name="ratio", score=saliency(batches=50), scope="per-task", arbiter=AtLeast(2), schedule=once()
        ),
        sparsity=0.7,
        seed=1,
    ),
}


def test_run_ids_are_the_ones_under_which_results_were_stored():
    assert [value.run_id for value in GOLDEN.values()] == [
        "toy-data-0.9-s0-86a46d9c6b",
        "toy-data-0.5-s3-26793cd0fb",
        "ratio-data-0.7-s1-6d90b531ee",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"sparsity": 0.5},
        {"data": "other"},
        {"train": Recipe(lr=2e-3)},
        {"finetune": Recipe()},
        {"protocol": dataclasses.replace(STANDARD, resize="nearest")},
        {"model_settings": Settings(width=32)},
        {"loss_weights": {"task": 2.0}},
        {"method": Method(name="toy", score=saliency(batches=2), schedule=once())},
    ],
    ids=str,
)
def test_whatever_determines_a_number_changes_the_hash(change):
    assert config(**change).run_id != config().run_id


def test_descriptions_and_sources_do_not_change_the_hash():
    method = Method(name="toy", score=saliency(), schedule=once(), description="other", sources={"a": "b"})
    assert config(method=method).run_id == config().run_id


def test_a_field_at_its_default_is_not_in_the_hash():
    assert describe(Recipe()) == {"is": "Recipe"}
    assert describe(Recipe(lr=0.5)) == {"is": "Recipe", "lr": 0.5}
    assert digest({"a": 1}) == digest({"a": 1})


def test_dense_training_is_shared_by_methods_and_sparsities_but_not_by_seeds():
    other = Method(name="other", score=saliency(), schedule=once())
    assert config(method=other, sparsity=0.1).dense_key == config().dense_key
    assert config(finetune=Recipe()).dense_key == config().dense_key
    assert config(seed=1).dense_key != config().dense_key
    assert config(train=Recipe(steps=10)).dense_key != config().dense_key


def test_what_cannot_be_described_is_refused():
    with pytest.raises(UsageError, match="cannot be part of a configuration"):
        describe(object())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lr": "1e-3", "steps": "200"}, Recipe(lr=1e-3, steps=200)),
        ({"lr": 1, "steps": 2e2}, Recipe(lr=1.0, steps=200)),
        ({"width": "32", "rates": "6,12"}, Settings(32, (6, 12))),
        ({"rates": [6, 12]}, Settings(64, (6, 12))),
    ],
)
def test_override_converts_text_and_toml_values(changes, expected):
    assert override(type(expected)(), changes, "section") == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepps": "3"}, r"Unknown setting 'train.stepps'. Did you mean 'train.steps'\?"),
        ({"steps": "many"}, "train.steps needs int, not 'many'"),
        ({"steps": 2.5}, "train.steps needs int"),
        ({"steps": True}, "train.steps needs int"),
        ({"lr": "fast"}, "train.lr needs float"),
        ({"lr": "nan"}, "lr of a recipe is nan"),
        ({"steps": "0"}, "steps of a recipe is 0; it must be 1 or more"),
        ({"mirror": "2"}, "mirror of a recipe"),
        ({"scale_low": "2", "scale_high": "1"}, "at least scale_low"),
    ],
)
def test_override_names_what_is_wrong(changes, message):
    with pytest.raises(UsageError, match=message):
        override(Recipe(), changes, "train")


def test_booleans_are_words():
    @dataclasses.dataclass(frozen=True)
    class Switch:
        on: bool = False

    globals()["Switch"] = Switch
    assert override(Switch(), {"on": "true"}, "s").on is True
    assert override(Switch(), {"on": "No"}, "s").on is False
    with pytest.raises(UsageError, match=r"s\.on needs bool"):
        override(Switch(), {"on": "perhaps"}, "s")


def test_settings_lines_become_sections():
    assert parse_settings(["train.lr=1e-3", "method.score.batches=10", "method.score=snip"]) == {
        "train": {"lr": "1e-3"},
        "method": {"score": {"batches": "10", "name": "snip"}},
    }
    assert merge_settings({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("line", ["train", "train=3", "train.lr", ".lr=3", "train..lr=3"])
def test_a_line_that_is_no_setting_says_how_to_write_one(line):
    with pytest.raises(UsageError, match=r"SECTION\.NAME=VALUE"):
        parse_settings([line])


def test_a_checkpoint_interval_is_not_negative():
    with pytest.raises(UsageError, match="checkpoint_seconds"):
        override(Engine(), {"checkpoint_seconds": "-1"}, "engine")
