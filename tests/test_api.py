"""The Python interface: runs on names and on objects, and masks for networks of one's own."""

import copy
import dataclasses
import textwrap
from collections import namedtuple
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune
from toys import Toy, Tree

from mtlprune_bench import (
    DataError,
    Labels,
    Masks,
    Method,
    Metric,
    Model,
    Recipe,
    Task,
    UsageError,
    as_dataset,
    load_results,
    noise,
    once,
    prune,
    run,
    table,
)
from mtlprune_bench.commands import run_cli
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.components import prunable
from mtlprune_bench.pruning.masks import kept_count
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.pipeline import START_MASKS
from mtlprune_bench.runs.reopening import final_network, reopen
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.store import Store
from mtlprune_bench.tasks import Batch
from mtlprune_bench.training.metrics import Deviation, mean_value

TOY = str(Path(__file__).parent / "toy_plugin.py")
SHORT = {"train.steps": 2, "train.batch": 4}
LABELS = [Labels("segmentation", classes=2), Labels("depth", unit="m")]
RECIPE = Recipe(steps=2, batch=2, crop=8, lr=1e-2, eval_batch=2)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# Masks alone.


@pytest.mark.parametrize(
    ("method", "settings", "batches"),
    [
        ("snip", {}, 1),
        ("disparse-static", {"method.score.batches": 3}, 3),
        ("disparse-static", {"method.arbiter": "and", "method.score.batches": 2, "method.allocation": "erk"}, 2),
        ("disparse-static", {"method": {"variant": "release", "score": {"batches": 2}}}, 2),
        ("grasp", {"method.score.temperature": 200}, 1),
        ("synflow", {"method.rounds": 3}, 1),
        ("random-erk", {"method.allocation.power": 0.9}, 1),
    ],
)
def test_masks_alone_are_those_of_a_run_to_the_bit(method, settings, batches, tmp_path):
    (done,) = run(method, "toy", sparsity=0.7, seeds=[3], store=tmp_path, plugins=[TOY], settings=settings | SHORT)
    experiment = done.experiment
    stages = Stages(experiment, done.store, load_registry([TOY]), Engine(device="cpu"), torch.device("cpu"))
    read = [
        {"images": batch.images, "rest": (batch.targets, batch.masks)}
        for batch in stages.batches(experiment.config.train, "score at 0", 0, batches)
    ]
    network = experiment.build_model(torch.device("cpu"))

    def losses(batch, temperature=1.0):
        return experiment.objective.losses(
            network(batch["images"]), Batch(batch["images"], *batch["rest"]), temperature
        )

    weights = experiment.objective.weights
    masks = prune(network, losses, read, method, 0.7, seed=3, loss_weights=weights, settings=settings)
    assert same(masks, Masks.load(done.folder / START_MASKS))
    assert 0 < masks.sparsity() < 1


def tree_losses(tree):
    return lambda images: {task: output.square().mean() for task, output in tree(images).items()}


def images(count=60):
    return [torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


UNABLE = {
    *("adapmtl", "adapmtl-single-threshold", "str"),
    *("dense", "dense-single-task", "dense-small"),
    *("disparse-dynamic", "rigl", "set", "gmp", "imp", "lth-iterative"),
}
"""Methods that learn their masks, prune nothing, or go on pruning while they train."""


def test_every_method_gives_exact_masks_or_says_that_it_has_to_train():
    for entry in load_registry().of_kind("methods"):
        tree = Tree()
        before = copy.deepcopy(tree.state_dict())
        settings = {"method.rounds": 2} if entry.name == "synflow" else {}
        settings |= {"method.score.temperature": 1} if entry.name == "grasp" else {}
        if entry.name in UNABLE:
            with pytest.raises(UsageError, match=r"run\(\) carries it out"):
                prune(tree, tree_losses(tree), images(), entry.name, 0.6)
            continue
        masks = prune(tree, tree_losses(tree), images(), entry.name, 0.6, settings=settings)
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int(mask.sum()) for mask in masks.values()) == kept_count(total, 0.6)
        assert "unused.weight" not in masks
        assert masks.components["shared"] == ("root.weight",)
        assert masks.components["a+b"] == ("branch.weight",)
        assert same(tree.state_dict(), before)


def test_a_method_may_be_an_object_and_its_masks_depend_on_the_seed():
    tree = Tree()
    method = Method(name="mine", score=noise(), schedule=once())
    one, two, again = (prune(tree, tree_losses(tree), images(1), method, 0.5, seed=seed) for seed in (0, 1, 0))
    assert same(one, again)
    assert not same(one, two)


def test_frozen_weights_are_left_alone_and_not_counted():
    tree = Tree()
    tree.root.requires_grad_(False)
    masks = prune(tree, tree_losses(tree), images(1), "snip", 0.5)
    assert "root.weight" not in masks
    assert masks.sparsity() == 0.5


Named = namedtuple("Named", "images scale")


@pytest.mark.parametrize("form", [lambda x: x, lambda x: [x, "name"], lambda x: {"x": (x, torch.tensor(2.0))}])
def test_batches_of_any_form_are_cut_into_parts(form):
    tree, whole = Tree().eval(), images(1)[0]
    seen = []

    def losses(batch):
        while not isinstance(batch, torch.Tensor):
            batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        seen.append(len(batch))
        return tree_losses(tree)(batch)

    cut = prune(tree, losses, [form(whole)], "snip", 0.5, settings={"method.score.parts": 2})
    assert seen == [4, 2, 2]  # the whole of it to see which task uses which weight
    whole_masks = prune(
        tree, tree_losses(tree), [whole[:2], whole[2:]], "snip", 0.5, settings={"method.score.batches": 2}
    )
    assert same(cut, whole_masks)


def test_named_tuples_stay_what_they_are():
    tree = Tree()

    def losses(batch):
        return {task: batch.scale * loss for task, loss in tree_losses(tree)(batch.images).items()}

    batch = Named(images(1)[0], 2.0)
    settings = {"method.score.parts": 4}
    assert prune(tree, losses, [batch], "snip", 0.5, settings=settings).sparsity() == pytest.approx(0.5)


def test_what_cannot_be_pruned_is_said():
    tree = Tree()
    losses = tree_losses(tree)
    for wrong, words, more in [
        (losses, 'scores on 50 batches, and there are 3.*score.batches": 3', {"method": "disparse-static"}),
        (losses, "temperature", {"method": "grasp"}),
        (losses, "Sparsity 1.5 is not in", {"sparsity": 1.5}),
        (losses, "Unknown method 'snap'. Did you mean 'snip'", {"method": "snap"}),
        (losses, "settings of the method only, and none of 'train'", {"settings": {"train.lr": 1}}),
        (losses, "Unknown setting 'method.sope'", {"settings": {"method.sope": "joint"}}),
        (losses, r"loss_weights are of \['x'\]", {"loss_weights": {"x": 1.0}}),
        (lambda x: tree(x), "the loss of each task, a scalar", {}),
        (lambda x: tree(x)["a"].sum(), "must return a dict", {}),
        (lambda x: {"a": x.sum()}, "'a' does not depend on its weights", {}),
    ]:
        with pytest.raises(UsageError, match=words):
            prune(tree, wrong, images(3), **({"method": "snip", "sparsity": 0.5} | more))
    plain = nn.ParameterList([torch.ones(3)])
    with pytest.raises(UsageError, match="no weight of a convolution"):
        prune(plain, lambda x: {"a": plain[0].sum()}, images(1), "snip")


# Masks in networks.


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Toy("ab")


def masks_of(network, sparsity=0.5):
    generator = torch.Generator().manual_seed(1)
    names = prunable(network).items()
    return Masks({name: torch.rand(weight.shape, generator=generator) > sparsity for name, weight in names})


def train(network, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        sum(output.square().mean() for output in network(images(steps)[step]).values()).backward()
        optimizer.step()


def test_removed_weights_stay_zero_whatever_the_optimizer_does(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    train(network, optimizer)  # momentum that would bring weights back
    before, masks = dict(network.named_parameters()), masks_of(network)
    masks.apply(network)
    for _ in range(3):
        train(network, optimizer, 1)
        assert all(not network.get_submodule(n[:-7]).weight[~mask].any() for n, mask in masks.items())
    moved = network.trunk[0].weight_orig.detach() * masks["trunk.0.weight"]
    masks.remove(network)
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert all(not after[name][~mask].any() for name, mask in masks.items())
    assert torch.equal(after["trunk.0.weight"], moved)
    train(network, optimizer, 1)


def test_weights_that_are_not_finite_are_removed_too(network):
    masks = masks_of(network)
    with torch.no_grad():
        network.trunk[0].weight[~masks["trunk.0.weight"]] = float("inf")
    masks.apply(network)
    assert torch.isfinite(network.trunk[0].weight).all()


def test_masks_go_to_torch_and_come_back(network):
    masks = masks_of(network)
    masks.apply(network)
    assert torch_prune.is_pruned(network)
    assert torch.equal(network.trunk[0].weight_mask.bool(), masks["trunk.0.weight"])
    assert same(Masks.from_torch(network), masks)
    with pytest.raises(UsageError, match=r"'trunk\.0\.weight' has a mask already"):
        masks.apply(network)
    with pytest.raises(UsageError, match="has a mask already"):
        prune(network, tree_losses(network), images(1), "snip")


def test_masks_that_torch_made_are_taken_over(network):
    other = copy.deepcopy(network)
    layers = [(layer, "weight") for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=0.75)
    masks = Masks.from_torch(network)
    assert masks.sparsity() == pytest.approx(0.75, abs=0.01)
    masks.apply(other)
    for (layer, _), name in zip(layers, masks, strict=True):
        assert torch.equal(layer.weight, other.get_submodule(name.removesuffix(".weight")).weight)
    masks.remove(network)
    assert not torch_prune.is_pruned(network)


def test_layers_that_share_a_weight_share_its_mask():
    layers = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    layers[1].weight = layers[0].weight
    masks = Masks({"0.weight": torch.eye(4) > 0})
    masks.apply(layers)
    for layer in layers:
        assert torch.count_nonzero(layer.weight) == 4
    assert same(Masks.from_torch(layers), masks)
    masks.remove(layers)
    assert layers[0].weight is layers[1].weight


def test_masks_are_kept_in_a_file_that_stays_where_it_is(network, tmp_path):
    masks, path = masks_of(network), tmp_path / "mine.safetensors"
    masks.save(path)
    assert same(Masks.load(path), dict(masks))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UsageError, match=r"mine\.safetensors cannot be read as masks"):
        Masks.load(path)
    assert path.read_bytes() == damaged
    with pytest.raises(UsageError, match="cannot be read as masks"):
        Masks.load(tmp_path / "none")


def test_masks_that_do_not_fit_are_refused(network):
    attention = nn.ModuleDict({"a": nn.MultiheadAttention(4, 1)})
    whole = torch.ones(4, 4, dtype=torch.bool)
    for model, masks, words in [
        (network, {"nothing.weight": whole}, "the model has no such weight"),
        (network, {"trunk.0.weight": whole}, r"one of shape \(4, 3, 3, 3\)"),
        (network, {"trunk.0.bias": whole[0]}, "no such weight"),
        (attention, {"a.out_proj.weight": whole}, "read by torch.nn.MultiheadAttention"),
    ]:
        with pytest.raises(UsageError, match=words):
            Masks(masks).apply(model)
    with pytest.raises(UsageError, match="has no mask to take out"):
        masks_of(network).remove(network)
    with pytest.raises(UsageError, match="no masks of torch"):
        Masks.from_torch(network)
    with pytest.raises(UsageError, match=r"is torch\.float32; masks are of type torch\.bool"):
        Masks({"a": torch.ones(2)})


# Runs.


def scene(seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 255, (3, 8, 8), generator=generator, dtype=torch.uint8)
    return image, {"segmentation": image[0] > 128, "depth": 1 + image[1:2] / 255}


def squares(count=4, **changes):
    train, test = [scene(seed) for seed in range(count)], [scene(seed) for seed in range(50, 52)]
    return as_dataset("squares", **{"train": train, "test": test, "labels": LABELS, "recipe": RECIPE} | changes)


class Net(nn.Module):
    def __init__(self, channels, width=6):
        super().__init__()
        self.trunk = nn.Conv2d(3, width, 3, 2, 1)
        self.heads = nn.ModuleDict({task: nn.Conv2d(width, count, 1) for task, count in channels.items()})

    def forward(self, x):
        features = self.trunk(x).relu()
        return {task: head(features) for task, head in self.heads.items()}


def test_lists_are_run_as_by_the_command_line(tmp_path, capsys):
    done = run(["dense", "random"], "toy", None, [0.5, 0.9], 2, store=tmp_path, plugins=[TOY], settings=SHORT)
    # A dense network is one at every sparsity.
    assert [(each.experiment.config.method.name, each.experiment.config.sparsity) for each in done] == [
        ("dense", 0),
        ("dense", 0),
        ("random", 0.5),
        ("random", 0.5),
        ("random", 0.9),
        ("random", 0.9),
    ]
    assert {each.status for each in done} == {"finished"}
    assert set(done.rows["run"]) == {each.id for each in done} == {path.name for path in Store(tmp_path).runs()}
    pd.testing.assert_frame_equal(done.rows, load_results(tmp_path))
    text = table(tmp_path, "csv", filters=["method=random"], columns=["mean_iou"], pivot="sparsity")
    words = [
        "table",
        "--format",
        "csv",
        "--filter",
        "method=random",
        "--columns",
        "mean_iou",
        "--pivot",
        "sparsity",
    ]
    assert run_cli([*words, "--store", str(tmp_path)]) == 0
    assert capsys.readouterr().out == text
    assert str(done) == table(done) == table(done.rows)
    settings = [f"--set={name}={value}" for name, value in SHORT.items()]
    command = ["run", "--method", "random", "--dataset", "toy", "--sparsity", "0.5", "--plugin", TOY, *settings]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("rows.parquet")}
    assert run_cli([*command, "--store", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("rows.parquet")} == before


def test_a_result_has_its_network_and_masks(tmp_path):
    done = run("random", squares(), Net, 0.5, store=tmp_path)
    (result,) = done
    assert result is done[0]
    assert result.masks.sparsity() == pytest.approx(0.5, abs=0.01)
    parameters = dict(result.model.named_parameters())
    assert all(not parameters[name][~mask].any() for name, mask in result.masks.items())
    assert same(Masks.load(result.folder / "masks.safetensors"), dict(result.masks))
    again = run("random", squares(), Net, 0.5, store=tmp_path, device="cpu")
    assert [each.id for each in again] == [result.id]
    assert len(Store(tmp_path).runs()) == 1
    assert run_cli(["show", result.id, "--store", str(tmp_path)]) == 0


def test_runs_are_named_by_what_objects_are(tmp_path):
    def name(dataset, model, **more):
        (done,) = run("random", dataset, model, 0.5, store=tmp_path, **more)
        return done.id, done.experiment.config.model, done.experiment.opened.splits.origin

    first = name(squares(), Net)
    wider = name(squares(), lambda channels: Net(channels, width=7))
    other = name(squares(count=5), Net)
    brighter = name(squares(mean=(0.1, 0.1, 0.1)), Net)
    versioned = name(squares(fingerprint="v2"), lambda: Net({"segmentation": 2, "depth": 1}))
    assert len({first, wider, other, brighter, versioned}) == 5
    assert wider[1].startswith("Net-")
    assert first[1] != wider[1]
    assert first[1] == other[1] == versioned[1]
    # Rows of different data or models are never in one table.
    assert len({origin for *_, origin in (first, other, brighter, versioned)}) == 4


CODE = """
from torch import nn
class Plain(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 2, 1)
    def forward(self, x):
        {comment}
        return {{"segmentation": super().forward({change})}}
"""


def test_the_code_of_a_class_names_its_model_but_not_its_comments(tmp_path, monkeypatch):
    from mtlprune_bench.api.networks import as_model

    monkeypatch.syspath_prepend(tmp_path)
    names = []
    for number, (comment, change) in enumerate([("", "x"), ("# a comment", "x"), ("", "2 * x")]):
        (tmp_path / f"plain_{number}.py").write_text(CODE.format(comment=comment, change=change))
        built = __import__(f"plain_{number}").Plain
        names.append(as_model(built, {"segmentation": 2}).name)
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("Plain-")


def test_tasks_and_metrics_of_ones_own_need_no_plugin(tmp_path):
    task = Task(name="red", description="how red", loss=lambda p, t, m, labels: F.mse_loss(p, t), channels=1)
    metric = Metric(
        name="off",
        task="red",
        description="mean error",
        state=lambda labels, protocol: Deviation(average=protocol.average),
        read=mean_value,
        higher_is_better=False,
    )
    items = [(image, {"red": image[:1] / 255}, {"red": image[0] > 50}) for image, _ in map(scene, range(4))]
    data = as_dataset("reds", items, items[:2], [Labels("red")], RECIPE)
    done = run("snip", data, Net, 0.5, store=tmp_path, tasks=[task], metrics=[metric])
    (row,) = done.rows[done.rows["metric"] == "off"].to_dict("records")
    assert row["task"] == "red"
    assert row["value"] > 0


def test_what_was_made_from_objects_opens_elsewhere_with_a_plugin(tmp_path, capsys):
    model = Model(name="mine", description="mine", settings=RECIPE, build=lambda channels, *_: Net(channels))
    (done,) = run("random", squares(), model, 0.5, store=tmp_path / "runs")
    assert run_cli(["export", done.id, "--store", str(tmp_path / "runs")]) == 2
    assert "Unknown dataset 'squares'" in capsys.readouterr().err
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        textwrap.dedent("""
        from mtlprune_bench import Model, hookimpl
        from test_api import RECIPE, Net, squares

        @hookimpl
        def register_datasets(register):
            register(squares())

        @hookimpl
        def register_models(register):
            build = lambda channels, *_: Net(channels)
            register(Model(name="mine", description="mine", settings=RECIPE, build=build))
    """)
    )
    experiment = reopen(done.folder, load_registry([str(plugin)]))
    network, masks = final_network(experiment, done.store)
    assert same(masks, dict(done.masks))
    assert same(network.state_dict(), done.model.state_dict())
    (again,) = run("random", "squares", "mine", 0.5, store=tmp_path / "runs", plugins=[str(plugin)])
    assert again.id == done.id


def test_a_failure_warns_and_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_BROKEN", "1")
    with pytest.warns(UserWarning, match="random-toy.* diverged: "):
        (done,) = run("random", "toy", sparsity=0.5, store=tmp_path, plugins=[TOY], settings=SHORT)
    assert done.status == "diverged"
    assert load_results(tmp_path)["reason"].tolist() == [done.reason]


def test_stand_ins_and_broken_plugins_warn(tmp_path):
    toy = load_registry([TOY]).get("datasets", "toy")
    far = dataclasses.replace(toy, name="far", open=lambda request: None, stand_in="toy")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with (
        pytest.warns(UserWarning, match="'broken' could not be loaded: ZeroDivisionError"),
        pytest.warns(UserWarning, match="STAND-IN DATA: instead of far"),
    ):
        done = run("random", far, store=tmp_path / "runs", plugins=[TOY, str(broken)], settings=SHORT)
    assert done.rows["stand_in"].all()


def test_requests_that_cannot_be_carried_out_are_said(tmp_path):
    net = Net({"segmentation": 2, "depth": 1})
    mine = Method(name="snip", score=noise(), schedule=once())
    for changes, words in [
        ({"model": net}, "model is one Net, with its weights.*model=lambda: Net"),
        ({"model": lambda: {}}, "model builds dict; it must build a torch.nn.Module"),
        ({"model": lambda channels: Net({"depth": 1})}, r"it must map them to a dict with 'segmentation': \[B, 2"),
        ({"model": lambda: nn.Conv2d(3, 2, 1)}, "The network maps images to Tensor"),
        ({"model": 3}, "model is 3; give a name"),
        ({"model": None}, "Dataset 'squares' names no model"),
        ({"model": "nothing"}, "Unknown model 'nothing'"),
        ({"method": mine}, r"'snip' of the methods is registered already, by plugin 'methods.snip' \(built in\)"),
        ({"method": "snup"}, "Did you mean 'snip'"),
        ({"method": []}, "nothing to run"),
        ({"seeds": 0}, "Seeds are 0"),
        ({"seeds": [0, -1]}, r"Seeds are \[0, -1\]"),
        ({"sparsity": [0.5, 1]}, "Sparsity 1.0 is not in"),
        ({"settings": {"train..lr": 1}}, "'train..lr' is no setting"),
        ({"settings": {"training.lr": 1}}, "Did you mean 'train'"),
        ({"settings": {"runner.workers": 2}}, "Only this process can open your dataset 'squares' and model 'Net-"),
        ({"settings": {"runner": "ray"}}, "leave runner and engine.devices alone"),
        ({"settings": {"engine.devices": 2}}, "leave runner and engine.devices alone"),
    ]:
        asked = {"method": "snip", "dataset": squares(), "model": Net, "store": tmp_path, **changes}
        with pytest.raises(UsageError, match=words):
            run(**asked)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="There is no store"):
        load_results(tmp_path / "none")
    with pytest.raises(UsageError, match="no results to compare"):
        table(tmp_path)


def test_data_that_are_wrong_are_named():
    class Changing(list):
        def __getitem__(self, index):
            return torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8), scene(0)[1]

    with pytest.raises(UsageError, match="Item 0 of train of squares is another one each time"):
        squares(train=Changing([1]))
    image, targets = scene(0)
    for item, words in [
        ((image / 255, targets), r"item 1 of train of squares is torch.float32 \(3, 8, 8\)"),
        (
            (image, {"depth": targets["depth"]}),
            "Item 1 of train of squares cannot be read.*KeyError: 'segmentation'",
        ),
        ((image, targets | {"depth": targets["depth"][0]}), r"target of depth.*it must be \[C, H, W\]"),
        ((image, targets | {"segmentation": targets["depth"]}), r"target of segmentation.*it must be \[H, W\]"),
        ((image, image), "cannot be read as an image, with targets and masks by task: "),
        (("word", targets), "TypeError"),
        (image, "Item 1 of train of squares is no Sample, nor"),
    ]:
        with pytest.raises(DataError, match=words):
            squares(train=[scene(0), item])


def test_a_dataset_of_ones_own_takes_samples_and_masks_as_they_are():
    data = squares()
    splits = data.open(None)
    again = squares(train=list(splits.train)).open(None)
    assert again.fingerprint == splits.fingerprint
    assert splits.train[0].targets["segmentation"].dtype == torch.int64
    assert splits.train[0].masks["depth"].all()
    image, targets = scene(0)
    hidden = as_dataset("hidden", [(image.numpy(), targets, {"depth": image[0] > 9})], [], LABELS, RECIPE)
    sample = hidden.open(None).train[0]
    assert torch.equal(sample.masks["depth"], image[0] > 9)
    assert sample.masks["segmentation"].all()
    assert hidden.loss_weights == {"segmentation": 1.0, "depth": 1.0}
