"""Reopening: the network of a stored run is rebuilt to the bit, or it is said why not."""

import shutil
from pathlib import Path

import pytest
import torch

from mtlprune_bench.errors import DataError, StoreError, UsageError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.reopening import final_network, first_image, reopen
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store, read_json, read_rows, write_json
from mtlprune_bench.training.batches import evaluation_batches
from mtlprune_bench.training.checkpoint import load_masks, load_tensors, save_tensors
from mtlprune_bench.training.evaluate import total_loss

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
STEPS = {"train": {"steps": 3}, "finetune": {"steps": 2}}


@pytest.fixture(scope="module")
def registry():
    return load_registry([PLUGIN])


def run(folder, registry, name, sparsity=0.8, **settings):
    """Execute a short run of the method `name` and return its folder."""
    request = Request(
        method=name, dataset="toy", sparsity=sparsity, seed=1, model="toy-net", settings={**STEPS, **settings}
    )
    outcomes = list(run_all([request], Store(folder), registry, lambda text: None))
    assert outcomes[-1].good, outcomes
    return folder / outcomes[-1].name


@pytest.fixture(scope="module")
def snip(tmp_path_factory, registry):
    settings = {"method": {"score": {"batches": 2}}, "engine": {"device": "cpu"}, "runner": {"workers": 1}}
    return run(tmp_path_factory.mktemp("store"), registry, "snip", **settings)


@pytest.fixture
def copy(snip, tmp_path):
    """Return a copy of the folder of a run, to be damaged."""
    return Path(shutil.copytree(snip, tmp_path / "runs" / snip.name))


@pytest.mark.parametrize(
    "method", ["snip", "dense", "dense-single-task", "dense-small", "toy-finetune", "toy-lottery", "imp", "str"]
)
def test_the_network_has_the_loss_of_the_rows(method, tmp_path, registry):
    settings = {"method": {"schedule": {"steps": 1}}} if method == "imp" else {}
    folder = run(tmp_path, registry, method, **settings)
    experiment = reopen(folder, registry)
    network, masks = final_network(experiment, Store(tmp_path))
    splits, objective = experiment.opened.splits, experiment.objective
    batches = evaluation_batches(splits.test, splits, objective, experiment.config.train.eval_batch)
    (stored,) = (
        row["value"]
        for row in read_rows(folder)
        if (row["metric"], row["task"], row["split"]) == ("loss", "", "test")
    )
    assert total_loss(network, objective, batches, torch.device("cpu")) == stored
    assert not network.training
    assert bool(masks) == (not method.startswith("dense"))


def test_a_run_keeps_what_was_asked_for_but_not_how_it_was_executed(snip):
    assert read_json(snip / "request.json") == {
        "method": "snip",
        "dataset": "toy",
        "sparsity": 0.8,
        "seed": 1,
        "model": "toy-net",
        "protocol": "standard",
        "settings": {**STEPS, "method": {"score": {"batches": 2}}},
    }


def test_what_is_reopened_is_the_experiment_that_was_run(snip, registry):
    experiment = reopen(snip, registry)
    assert experiment.config.run_id == snip.name
    assert experiment.config.method.score.batches == 2
    _, masks = final_network(experiment, Store(snip.parent))
    stored = load_masks(snip / "masks.safetensors")
    assert masks.keys() == stored.keys()
    assert all(torch.equal(masks[name], stored[name]) for name in stored)


def test_the_image_is_the_first_of_the_test_set_as_the_network_gets_it(snip, registry):
    experiment = reopen(snip, registry)
    pixels = experiment.opened.splits.test[0].image / 255
    assert torch.equal(first_image(experiment), ((pixels - 0.5) / 0.25)[None])
    assert first_image(experiment, (8, 9)).shape == (1, 3, 8, 9)


def test_a_run_of_an_earlier_version_says_how_to_go_on(copy, registry):
    (copy / "request.json").unlink()
    with pytest.raises(UsageError, match=r"has no request\.json.*Give the mtlbench run .* once more"):
        reopen(copy, registry)


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [("seed", 2, "seed"), ("sparsity", 0.5, "sparsity"), ("settings", {"train": {"steps": 9}}, "train")],
)
def test_a_run_that_would_be_another_one_now_is_refused(copy, registry, name, value, other):
    write_json(copy / "request.json", read_json(copy / "request.json") | {name: value})
    with pytest.raises(UsageError, match=rf"cannot be rebuilt: .* another .*{other}.*--plugin"):
        reopen(copy, registry)


def test_a_request_of_another_version_is_refused(copy, registry):
    write_json(copy / "request.json", read_json(copy / "request.json") | {"colour": "red"})
    with pytest.raises(UsageError, match=r"request\.json is of another version.*colour"):
        reopen(copy, registry)


def test_a_damaged_request_is_kept_aside_and_the_run_refused(copy, registry):
    (copy / "request.json").write_text("{")
    with (
        pytest.warns(UserWarning, match=r"request\.json is damaged"),
        pytest.raises(UsageError, match="once more"),
    ):
        reopen(copy, registry)
    assert (copy / "request.json.damaged-1").read_text() == "{"


def test_data_that_have_moved_are_looked_for_where_the_user_says(copy, registry, tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*elsewhere"):
        reopen(copy, registry, str(tmp_path / "elsewhere"))
    assert reopen(copy, registry, str(tmp_path)).request.settings["data"] == {"root": str(tmp_path)}


def test_a_run_that_has_not_ended_has_no_network(copy, registry):
    (copy / "weights.safetensors").unlink()
    with pytest.raises(StoreError, match=r"There are no final weights in .* once more"):
        final_network(reopen(copy, registry), Store(copy.parent))


def test_weights_that_do_not_fit_their_masks_are_refused(copy, registry):
    weights, facts = load_tensors(copy / "weights.safetensors")
    name, mask = next(iter(load_masks(copy / "masks.safetensors").items()))
    weights[name][~mask] = 1.0
    save_tensors(copy / "weights.safetensors", weights, facts)
    with pytest.raises(StoreError, match=rf"does not fit masks\.safetensors: removed weights of {name}"):
        final_network(reopen(copy, registry), Store(copy.parent))


def test_a_plugin_that_is_not_loaded_is_named(copy):
    with pytest.raises(UsageError, match=r"Unknown dataset 'toy'.*--plugin"):
        reopen(copy, load_registry())


def test_the_request_of_a_dense_run_does_not_depend_on_the_sparsity_asked_for(tmp_path, registry):
    folder = run(tmp_path, registry, "dense", sparsity=0.5)
    experiment = reopen(folder, registry)
    assert (experiment.config.sparsity, experiment.config.run_id) == (0, folder.name)
