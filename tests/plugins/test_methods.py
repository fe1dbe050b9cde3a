"""The methods: what the specification of each says of its masks and starting weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from references import pruning as reference

from mtlprune_bench import FixedRatio, Recipe
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.components import discover
from mtlprune_bench.pruning.gradients import Voter
from mtlprune_bench.pruning.prune import make_masks
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.runs.suite import prepare_all
from mtlprune_bench.store import Store

PLUGIN = str(Path(__file__).parents[1] / "toy_plugin.py")


@pytest.fixture(scope="module")
def registry():
    return load_registry([PLUGIN])


def masks_of(registry, tmp_path, name, sparsity=0.7, dataset="toy", **settings):
    """Return the experiment, the network before training and the masks of a method on the toy data."""
    request = Request(method=name, dataset=dataset, sparsity=sparsity, seed=0, settings=settings)
    (experiment,) = prepare_all([request], registry, lambda text: None)
    model = experiment.build_model(torch.device("cpu"))
    return experiment, model, start_masks(experiment, model, registry, tmp_path)


def start_masks(experiment, model, registry, tmp_path, method=None):
    """Return the masks that the experiment's method, or another, makes of `model` before the first step."""
    stages = Stages(experiment, Store(tmp_path), registry, Engine(), torch.device("cpu"))
    config = experiment.config
    return make_masks(method or config.method, stages.scoring(model, "score at 0"), config.sparsity)


def test_disparse_static_is_the_union_of_each_tasks_best_at_one_ratio(registry, tmp_path):
    seen = {}

    class Spy:
        name = "spy"

        def __init__(self, scorer):
            self.scorer = scorer

        def __call__(self, scoring):
            seen.update(self.scorer(scoring))
            return seen

    experiment, model, _ = masks_of(registry, tmp_path, "disparse-static", method={"score": {"batches": "2"}})
    spied = replace(experiment.config.method, score=Spy(experiment.config.method.score))
    masks = start_masks(experiment, model, registry, tmp_path, spied)
    shared = discover(model, torch.zeros(1, 3, 64, 64)).by_name()["shared"]
    kept = sum(int(mask.sum()) for mask in masks.values())

    flat = [torch.cat([score.flatten() for score in scores.values()]).tolist() for scores in seen.values()]
    size = sum(masks[name].numel() for name in shared)

    def rule(ratio):
        """Return the trunk's mask, and how many weights stay, where each task keeps this share of its own."""
        own = [reference.own_mask(scores, int(ratio * len(scores))) for scores in flat]
        union = reference.vote([mask[:size] for mask in own], 1)
        return torch.tensor(union), sum(union) + sum(sum(mask[size:]) for mask in own)

    ratios = [i / 400 for i in range(401)]
    below = max(ratio for ratio in ratios if rule(ratio)[1] <= kept)
    above = min(ratio for ratio in ratios if rule(ratio)[1] >= kept)
    assert above - below <= 2 / 400
    found = torch.cat([masks[name].flatten() for name in shared])
    assert (rule(below)[0] <= found).all()
    assert (found <= rule(above)[0]).all()


def test_disparse_static_scores_a_redrawn_copy_on_fifty_batches_and_trains_the_original(registry, tmp_path):
    experiment, model, _ = masks_of(registry, tmp_path, "disparse-static", method={"score": {"batches": "1"}})
    registered = registry.get("methods", "disparse-static")
    assert (registered.score.batches, registered.score.init, registered.score.mode) == (50, "xavier", "train")
    fresh = experiment.build_model(torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), fresh.buffers(), strict=True))


def test_disparse_static_with_one_task_is_snip_on_the_same_batches_to_the_bit(registry, tmp_path):
    same = {"score": {"batches": "3", "init": "xavier", "mode": "train"}}
    _, _, snip = masks_of(registry, tmp_path, "snip", dataset="toy-single", method=same)
    _, _, disparse = masks_of(registry, tmp_path, "disparse-static", dataset="toy-single", method=same)
    assert snip.keys() == disparse.keys()
    assert all(torch.equal(mask, disparse[name]) for name, mask in snip.items())


def test_magnitude_of_trained_weights_gives_tasks_nested_masks_and_needs_no_data(registry, tmp_path):
    experiment, model, _ = masks_of(
        registry, tmp_path, "disparse-pretrained", model={"width": "48"}, method={"variant": "l1"}
    )
    method = experiment.config.method
    scoring = Stages(experiment, Store(tmp_path), registry, Engine(), torch.device("cpu")).scoring(model, "x")

    def refused(count):
        raise AssertionError("no batch is needed")

    scoring = replace(scoring, batches=refused)
    settled = make_masks(method, scoring, 0.6)
    released = make_masks(replace(method, calibration=FixedRatio(keep_ratio=0.4)), scoring, 0.6)
    trunk = [name for name in scoring.weights if name.startswith("trunk")]
    alone = {}
    for voter in scoring.voters:
        own = replace(scoring, voters=[voter])
        alone[voter.name] = make_masks(replace(method, calibration=FixedRatio(keep_ratio=0.4)), own, 0.6)
    first, second = (torch.cat([masks[name].flatten() for name in trunk]) for masks in alone.values())
    small, large = sorted((first, second), key=torch.sum)
    assert (small <= large).all()
    assert torch.equal(torch.cat([released[name].flatten() for name in trunk]), large)
    # Solved for a sparsity, too: what stays of the trunk is what is largest in it.
    magnitudes = torch.cat([scoring.weights[name].detach().abs().flatten() for name in trunk])
    kept = torch.cat([settled[name].flatten() for name in trunk])
    assert magnitudes[kept].min() >= magnitudes[~kept].max()


def test_gradient_flow_scores_trained_weights_and_is_fine_tuned(registry):
    method = registry.get("methods", "disparse-pretrained")
    assert (method.score.name, method.score.batches, method.score.init) == ("gradient-flow", 50, "own")
    assert (method.start.score_on, method.start.train_from, method.budget) == ("trained", "trained", "finetune")
    assert method.variants["release"]["score"].name == "magnitude"


def test_snip_scores_weights_drawn_apart_from_those_that_are_trained(registry, tmp_path):
    _, model, first = masks_of(registry, tmp_path, "snip")
    with torch.no_grad():
        model.trunk[0].weight.mul_(-2)
    experiment, _, _ = masks_of(registry, tmp_path, "snip")
    second = start_masks(experiment, model, registry, tmp_path)
    assert all(torch.equal(mask, second[name]) for name, mask in first.items())


def test_random_keeps_the_same_share_of_every_layer_but_for_chance(registry, tmp_path):
    _, _, masks = masks_of(registry, tmp_path, "random", sparsity=0.5, model={"width": "64"})
    for name, mask in masks.items():
        assert float(mask.float().mean()) == pytest.approx(0.5, abs=4 * (0.25 / mask.numel()) ** 0.5), name


def test_dense_prunes_nothing_at_any_sparsity(registry):
    assert registry.get("methods", "dense").schedule.plan(0.9, Recipe()) == ()


def test_a_voter_sums_its_weighted_losses():
    voter = Voter("all", {"a": 2.0, "b": 3.0}, ())
    assert voter.loss({"a": torch.tensor(1.0), "b": torch.tensor(10.0)}) == 32
