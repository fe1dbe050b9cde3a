"""Trials and what they try: settings that round differently name a run, and masks hold under them."""

import itertools
import shutil

import pytest
import torch
import toys
from test_batches import assert_same, stream, take
from test_train import LOSSES, network, random_masks

from mtlprune_bench import Recipe, UsageError
from mtlprune_bench.commands import run_cli
from mtlprune_bench.processes import Processes
from mtlprune_bench.runs.config import digest
from mtlprune_bench.training import trial
from mtlprune_bench.training.forward import forward_pass
from mtlprune_bench.training.state import weights_of
from mtlprune_bench.training.train import train

BASE = {"steps": 6, "batch": 2, "crop": 6, "lr": 1e-2}


def trained(folder, masks=None, **changes):
    """Return a network after a training with `changes` to the recipe, under `masks`."""
    folder.mkdir()
    model = network()
    train(toys.training(model, folder, LOSSES, recipe=Recipe(**BASE, **changes)), masks or {})
    return model


def test_settings_at_their_default_name_no_run_and_others_do():
    plain = digest(Recipe(**BASE))
    assert digest(Recipe(**BASE, memory_format="channels_first", compile=False)) == plain
    changed = {digest(Recipe(**BASE, memory_format="channels_last")), digest(Recipe(**BASE, compile=True))}
    assert len(changed | {plain}) == 3
    with pytest.raises(UsageError, match="memory_format of a recipe is rows; it must be channels_first or"):
        Recipe(**BASE, memory_format="rows")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_channels_last_gives_the_same_predictions_and_gradients_but_for_rounding(precision, tolerance):
    found = []
    for order in ("channels_first", "channels_last"):
        model, images = network(), toys.batches(LOSSES)[0].images
        for head in model.heads.values():
            head[0].p = 0.0  # dropout draws in the order of memory
        outputs = forward_pass(model, Recipe(**BASE, precision=precision, memory_format=order))({}, images)
        sum(output.square().mean() for output in outputs.values()).backward()
        found.append([*outputs.values(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_channels_last_leaves_weights_in_order_and_removed_ones_at_zero(tmp_path, precision):
    masks = random_masks(network())
    model = trained(tmp_path / "last", masks, precision=precision, memory_format="channels_last")
    assert all(weight.is_contiguous() for weight in weights_of(model).values())
    assert all((weights_of(model)[name][~mask] == 0).all() for name, mask in masks.items())


def test_channels_last_reaches_the_layers_and_predictions_are_plain():
    seen = []
    model = network()
    model.trunk[0].register_forward_hook(lambda layer, inputs, output: seen.extend([*inputs, output]))
    images = toys.batches(LOSSES)[0].images
    outputs = forward_pass(model, Recipe(**BASE, memory_format="channels_last"))({}, images)
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)
    assert all(output.is_contiguous() for output in outputs.values())


@pytest.fixture
def graphs(monkeypatch):
    """Let torch.compile call no C++ compiler, and return the graphs that it was to make kernels for."""
    made = []
    compile_ = torch.compile

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, options: compile_(function, backend=backend))
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


def test_masks_may_change_without_compiling_again(graphs):
    model, images = network(), toys.batches(LOSSES)[0].images
    forward = forward_pass(model, Recipe(**BASE, compile=True))
    plain = forward_pass(model, Recipe(**BASE))
    for seed in range(4):
        with torch.no_grad():
            for name, mask in random_masks(model, 0.9 - seed / 5).items():
                dict(model.named_parameters())[name].mul_(mask)
        found = []
        for each in (forward, plain):
            torch.manual_seed(seed)
            found.append(each({}, images))
        assert all(torch.allclose(found[0][task], found[1][task], atol=1e-6) for task in LOSSES)
    assert len(graphs) == 1


def test_weights_hidden_by_masks_are_compiled_once_too(graphs):
    model, images = network(), toys.batches(LOSSES)[0].images
    forward = forward_pass(model, Recipe(**BASE, compile=True))
    for seed in range(3):
        masks = random_masks(model, 0.9 - seed / 5)
        hidden = {name: dict(model.named_parameters())[name] * mask for name, mask in masks.items()}
        forward(hidden, images)["a"].sum().backward()
        assert (model.trunk[0].weight.grad[~masks["trunk.0.weight"]] == 0).all()
        model.zero_grad()
    assert len(graphs) == 1


def test_a_compiler_that_is_not_there_is_named_with_the_way_out(monkeypatch):
    compile_ = torch.compile

    def backend(graph, inputs):
        raise RuntimeError("No working C++ compiler found.")

    monkeypatch.setattr(torch, "compile", lambda function, options: compile_(function, backend=backend))
    torch.compiler.reset()
    forward = forward_pass(network(), Recipe(**BASE, compile=True))
    with pytest.raises(UsageError, match=r"No working C\+\+ compiler found.*set train.compile=false"):
        forward({}, toys.batches(LOSSES)[0].images)
    torch.compiler.reset()


def test_kernels_are_not_made_on_several_devices(tmp_path):
    training = toys.training(
        network(), tmp_path, LOSSES, recipe=Recipe(**BASE, compile=True), processes=Processes(0, 2)
    )
    with pytest.raises(UsageError, match=r"several devices: set train\.compile=false"):
        _ = training.forward


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_is_training_but_for_rounding(tmp_path):
    masks = random_masks(network())
    plain, model = trained(tmp_path / "plain", masks), trained(tmp_path / "compiled", masks, compile=True)
    for name, weight in weights_of(model).items():
        torch.testing.assert_close(weight, weights_of(plain)[name], rtol=0, atol=1e-2)
        if name in masks:
            assert (weight[~masks[name]] == 0).all()


def test_variants_begin_with_the_recipes_own_and_try_each_other_once():
    own = Recipe(**BASE)
    assert trial.variants(own) == [
        {},
        {"memory_format": "channels_last"},
        {"precision": "bf16"},
        {"precision": "bf16", "memory_format": "channels_last"},
    ]
    assert len(trial.variants(own, compiled=True)) == 8
    double = trial.variants(Recipe(**BASE, precision="fp64", memory_format="channels_last"))
    assert double == [{}, {"memory_format": "channels_first"}]


def test_trials_time_every_setting_and_leave_generators_alone():
    networks = [network(), network()]
    before = torch.get_rng_state()
    changes = [{}, {"memory_format": "channels_last"}]
    goal, batch = toys.objective(LOSSES), toys.batches(LOSSES)[0]
    found = trial.time_steps(networks.pop, goal, Recipe(**BASE), batch, changes, 2)
    assert [timing.changes for timing in found] == changes
    assert all(timing.seconds > 0 for timing in found)
    assert networks == []
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("reading", "chosen"),
    [({0: 0.05, 1: 0.9}, 0), ({0: 0.5, 1: 0.9, 2: 0.4}, 1), ({0: 3.0, 1: 2.5, 2: 1.5}, 2)],
)
def test_the_fewest_workers_that_keep_up_are_chosen_else_the_fastest(reading, chosen):
    assert trial.fewest_workers(reading, step=1.0) == chosen


def test_reading_is_timed_for_each_number_of_workers_and_changes_no_batch():
    source = stream()
    assert list(trial.time_reading(source, [0, 1], 2)) == [0, 1]
    for one, other in zip(take(stream(workers=2).start(0), 3), itertools.islice(source.start(0), 3), strict=True):
        assert_same(one, other)


def test_the_command_prints_settings_as_they_are_given(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plugin = str(toys.__file__).replace("toys.py", "toy_plugin.py")
    code = run_cli(["trial", "--plugin", plugin, "--method", "dense", "--dataset", "toy", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert code == 0
    assert "as they are" in printed
    assert "train.precision=bf16 train.memory_format=channels_last" in printed
    assert "engine.workers=0" in printed
    assert not (tmp_path / "runs").exists()
