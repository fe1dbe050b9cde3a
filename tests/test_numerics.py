"""Numerics: what is not finite is named with its step and images, stops the run, and spoils no checkpoint."""

import logging
import math
from pathlib import Path

import pytest
import torch
import toys
from toys import Toy, Tree, batches

from mtlprune_bench import Recipe
from mtlprune_bench.errors import DivergedError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.components import discover
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.runs.suite import failed, prepare_all, run_all
from mtlprune_bench.seeds import derive
from mtlprune_bench.store import Store, read_history, read_rows
from mtlprune_bench.training.batches import Stream
from mtlprune_bench.training.checkpoint import load_tensors
from mtlprune_bench.training.evaluate import Value
from mtlprune_bench.training.numerics import Origin, Unseen, check_step, check_weights, emptied, look
from mtlprune_bench.training.state import CHECKPOINT
from mtlprune_bench.training.train import HISTORY, train

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
LOSSES = {"a": 1.0, "b": 2.0}
RECIPE = Recipe(steps=12, batch=2, crop=6, lr=1e-2)
SILENT = {"notify": lambda text: None}


def network():
    torch.manual_seed(0)
    return Toy(sorted(LOSSES))


def spoil(model, at, value=math.nan):
    """Let the gradient of the trunk's first layer be `value` from the step `at` on, of which the loss is good."""
    passes = iter(range(100))

    def hook(gradient):
        return gradient * value if next(passes) >= at else gradient

    model.trunk[0].weight.register_hook(hook)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_the_loss_shows_it(tmp_path, value):
    model = network()
    spoil(model, 5, value)
    origin = Origin(lambda step: [step, 7], lambda name: ("a", "b"))
    wanted = (
        r"gradient of 'trunk.0.weight', which is used for 'a' and 'b', has norm \w+ at step 5 with the training "
    )
    with pytest.raises(DivergedError, match=wanted + r"images 5, 7\. Lower train\.lr.* before step 5 is kept\."):
        train(toys.training(model, tmp_path, LOSSES, recipe=RECIPE, origin=origin, checkpoint_seconds=0), {})
    entries = list(read_history(tmp_path / HISTORY))
    assert [entry["step"] for entry in entries] == list(range(6))
    assert all(math.isfinite(loss) for entry in entries for loss in entry["losses"].values())
    tensors, facts = load_tensors(tmp_path / CHECKPOINT)
    assert facts["step"] == 5
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_the_checkpoint_that_is_kept_is_the_last_good_one_and_training_goes_on_from_it(tmp_path):
    whole, model = network(), network()
    (tmp_path / "whole").mkdir()
    train(toys.training(whole, tmp_path / "whole", LOSSES, recipe=RECIPE), {})
    spoil(model, 8)
    with pytest.raises(DivergedError):
        train(toys.training(model, tmp_path, LOSSES, recipe=RECIPE, checkpoint_seconds=0), {})
    resumed = network()
    train(toys.training(resumed, tmp_path, LOSSES, recipe=RECIPE), {})
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_several_steps_are_looked_at_at_once_and_the_first_bad_one_is_named():
    unseen = [
        Unseen(step, ("a", "b"), torch.tensor([1.0, step]), ("w", "v"), torch.tensor([1.0, norm]))
        for step, norm in ((3, 2.0), (4, math.nan), (5, math.inf))
    ]
    seen = look(unseen)
    assert [(losses, norm) for _, losses, norm in seen[:1]] == [({"a": 1.0, "b": 3.0}, 3.0)]
    check_step(*seen[0], Origin(), "")
    with pytest.raises(DivergedError, match=r"gradient of 'v' has norm nan at step 4\. Lower train\.lr"):
        check_step(*seen[1], Origin(), "")


def test_a_loss_is_named_before_a_gradient_and_the_first_of_several_tasks():
    bad = Unseen(2, ("a", "b"), torch.tensor([1.0, math.inf]), ("w",), torch.tensor([math.nan]))
    ((seen, losses, norm),) = look([bad])
    with pytest.raises(
        DivergedError, match=r"loss of task 'b' is inf at step 2 with the training images 4, 1\. L"
    ):
        check_step(seen, losses, norm, Origin(lambda step: [4, 1]), "")


def test_weights_that_are_not_finite_are_never_saved():
    model = network()
    check_weights(model, 3)
    with torch.no_grad():
        model.heads["b"][1].bias[1] = math.inf
    with pytest.raises(DivergedError, match=r"norm of 'heads\.b\.1\.bias' is inf after 3 steps"):
        check_weights(model, 3)


def test_looking_changes_nothing_and_needs_no_generator():
    model, other = network(), network()
    for each in (model, other):
        loss = sum(output.square().mean() for output in each(batches(LOSSES)[0].images).values())
        loss.backward()
    state = torch.get_rng_state()
    check_weights(model, 0)
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.fixture(scope="module")
def registry():
    return load_registry([PLUGIN])


def request(method="snip", sparsity=0.8, **settings):
    return Request(method=method, dataset="toy", sparsity=sparsity, seed=0, settings=settings)


def test_the_images_that_are_named_are_those_of_the_batch(registry):
    (experiment,) = prepare_all([request()], registry, **SILENT)
    splits = experiment.opened.splits
    stream = Stream(splits, experiment.objective, experiment.config.train, seed=derive(0, "training batches"))
    for step in (0, 2, 5):
        places = stream.images(step)
        assert len(places) == experiment.config.train.batch
        for number, place in enumerate(places):
            alone = stream.sample(step * experiment.config.train.batch + number)
            assert torch.equal(alone.images, stream[step].images[number : number + 1])
            assert 0 <= place < len(splits.train)
    epoch = [place for step in range(3) for place in stream.images(step)]
    assert sorted(epoch) == list(range(12)), "an epoch of twelve images in batches of four"


def test_a_run_that_diverges_says_at_which_images_and_is_only_made_again_when_asked(
    tmp_path, registry, monkeypatch
):
    store = Store(tmp_path)
    monkeypatch.setenv("TOY_BROKEN", "1")
    (outcome,) = run_all([request("random")], store, registry, **SILENT)
    (experiment,) = prepare_all([request("random")], registry, **SILENT)
    stages = Stages(experiment, store, registry, Engine(device="cpu"), torch.device("cpu"))
    images = ", ".join(map(str, stages._stream(experiment.config.recipe, "training batches").images(0)))
    assert f"loss of task 'normals' is nan at step 0 with the training images {images}. Lower" in outcome.reason
    monkeypatch.delenv("TOY_BROKEN")
    assert failed([experiment], store) == [experiment]
    (left,) = run_all([request("random")], store, registry, **SILENT, retry=False)
    assert left.status == "diverged"
    (again,) = run_all([request("random")], store, registry, **SILENT)
    assert again.status == "finished"


def test_a_network_whose_final_losses_are_no_numbers_diverged(tmp_path, registry, monkeypatch):
    value = Value("normals", "loss", math.nan, "", False)
    monkeypatch.setattr("mtlprune_bench.runs.run.evaluate", lambda *arguments: [value])
    (outcome,) = run_all([request("random")], Store(tmp_path), registry, **SILENT)
    assert outcome.status == "diverged"
    assert "After training, the loss of task 'normals' on the split train is nan." in outcome.reason
    assert [row["status"] for row in read_rows(tmp_path / outcome.name)] == ["diverged"]
    assert load_tensors(tmp_path / outcome.name / "weights.safetensors") is not None


def masks_of(model, **empty):
    return {
        name: torch.full(weight.shape, name not in empty["without"])
        for name, weight in model.named_parameters()
        if name.endswith("weight") and not name.startswith("unused")
    }


def test_what_is_emptied_is_named_once_heads_first():
    model = Tree()
    components = discover(model, torch.zeros(1, 3, 6, 6))
    assert list(emptied(masks_of(model, without=()), components)) == []
    masks = masks_of(model, without=("heads.a.weight", "root.weight"))
    assert list(emptied(masks, components)) == [
        "No weight is left of component 'shared': what is predicted by it no longer depends on the image.",
        "No weight is left of what 'a' alone uses: what is predicted by it no longer depends on the image.",
    ]


def test_single_layers_are_named_and_many_counted():
    model = Toy(sorted(LOSSES))
    components = discover(model, torch.zeros(1, 3, 6, 6))
    masks = {name: torch.ones(1, dtype=torch.bool) for name in components.users}
    masks["trunk.0.weight"] = torch.zeros(1, dtype=torch.bool)
    assert list(emptied(masks, components)) == ["No weight is left in trunk.0.weight."]
    many = {f"layer-{number}": torch.zeros(2, dtype=torch.bool) for number in range(8)}
    (words,) = emptied({**dict.fromkeys(components.users, torch.ones(1)), **many}, components)
    assert words == "No weight is left in layer-0, layer-1, layer-2, layer-3, layer-4 and 3 more."


def test_a_run_goes_on_with_an_empty_head_and_says_so(tmp_path, registry, caplog):
    with caplog.at_level(logging.WARNING):
        (outcome,) = run_all([request("random", 0.999)], Store(tmp_path), registry, **SILENT)
    assert outcome.status == "finished"
    empty = {
        row["component"]
        for row in read_rows(tmp_path / outcome.name)
        if row["metric"] == "sparsity" and row["value"] == 1
    }
    said = [record.getMessage() for record in caplog.records if "No weight is left" in record.getMessage()]
    assert empty
    assert all(any(f"'{component}'" in line for line in said) for component in empty)
    assert all(line.startswith(outcome.name) for line in said)
    assert len(said) == len(set(said))
