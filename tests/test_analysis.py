"""Analysis of masks: every IoU against scikit-learn, the watershed on the paper's own numbers, trunks by hand."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torch import nn
from toys import Toy, Tree, scoring

from mtlprune_bench import MAJORITY, OR, Erk, Method, once, saliency
from mtlprune_bench.analysis.overlap import (
    Trunk,
    added,
    branch_at,
    lasting_falls,
    overlap,
    pair_overlaps,
    stays_below,
    task_overlaps,
    trunk_of,
    watershed,
)
from mtlprune_bench.analysis.sources import own_masks
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.components import Components, prunable
from mtlprune_bench.pruning.method import FixedRatio
from mtlprune_bench.pruning.prune import fixed_masks

# Figure 3 of DiSparse: IoU of the tasks' masks, from the released files, for the 33 layers that are plotted.
NYU = [
    *(0.9677, 0.9468, 0.9387, 0.9285, 0.9130, 0.9092, 0.8930, 0.8659, 0.7551, 0.7259, 0.6695, 0.6357, 0.5750),
    *(0.5558, 0.4707, 0.3811, 0.1288, 0.1015, 0.0494, 0.0438, 0.0176, 0.0221, 0.0213, 0.0137, 0.0303, 0.0302),
    *(0.0359, 0.0614, 0.0339, 0.0284, 0.0336, 0.0633, 0.0277),
]
CITYSCAPES = [
    *(0.9921, 0.9809, 0.9759, 0.9713, 0.9650, 0.9643, 0.9578, 0.9486, 0.9077, 0.8990, 0.8802, 0.8668, 0.8395),
    *(0.8292, 0.8058, 0.7597, 0.5981, 0.5508, 0.4673, 0.4545, 0.3462, 0.3627, 0.2384, 0.2545, 0.1642, 0.2053),
    *(0.1284, 0.1514, 0.0471, 0.0345, 0.0511, 0.0529, 0.0470),
]
TASKONOMY = [
    *(0.9895, 0.9763, 0.9729, 0.9673, 0.9639, 0.9623, 0.9536, 0.9389, 0.8935, 0.8865, 0.8645, 0.8527, 0.8198),
    *(0.8107, 0.7712, 0.7233, 0.5123, 0.4767, 0.3894, 0.3547, 0.2621, 0.2481, 0.1688, 0.1702, 0.1002, 0.1175),
    *(0.0603, 0.0665, 0.0046, 0.0071, 0.0009, 0.0000, 0.0009),
]


def random_masks(count, size, seed=0):
    """Return masks with densities from 0.1 to 0.9."""
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(generator.random(size) < density) for density in np.linspace(0.1, 0.9, count)]


# Overlap


@pytest.mark.parametrize("seed", range(5))
def test_the_iou_of_two_masks_is_the_jaccard_score(seed):
    one, other = random_masks(2, (7, 5, 3), seed)
    assert overlap([one, other]).iou == pytest.approx(jaccard_score(one.ravel(), other.ravel()))


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=5))
def test_the_overlap_of_several_masks_is_that_of_sets(rows):
    kept = [{place for place, bit in enumerate(row) if bit} for row in rows]
    part = overlap([torch.tensor(row) for row in rows])
    common, union = set.intersection(*kept), set.union(*kept)
    assert (part.weights, part.kept, part.by_all, part.by_any) == (
        9,
        tuple(map(len, kept)),
        len(common),
        len(union),
    )
    assert part.iou == (len(common) / len(union) if union else 1.0)


def test_masks_that_keep_nothing_agree():
    nothing, something = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    assert (overlap([nothing, nothing]).iou, overlap([nothing, nothing]).chance) == (1.0, 1.0)
    assert (overlap([nothing, something]).iou, overlap([nothing, something]).chance) == (0.0, 0.0)


@pytest.mark.parametrize("count", [2, 3])
def test_the_iou_by_chance_is_what_shuffling_within_layers_gives(count):
    layers = [random_masks(count, 3000), random_masks(count, 1000, seed=1)[::-1]]
    generator = torch.Generator().manual_seed(0)
    shuffled = [[mask[torch.randperm(len(mask), generator=generator)] for mask in layer] for layer in layers]
    expected = added(overlap(layer) for layer in layers).chance
    assert added(overlap(layer) for layer in shuffled).iou == pytest.approx(expected, abs=0.02)
    # Without layers the expectation is another: shuffling all weights loses where each mask is dense.
    assert overlap([torch.cat(parts) for parts in zip(*layers, strict=True)]).chance != pytest.approx(
        expected, abs=0.02
    )


def test_layers_add_up_to_the_overlap_of_the_whole():
    layers = [random_masks(3, 40), random_masks(3, (5, 6), seed=1)]
    whole = overlap([torch.cat([mask.flatten() for mask in parts]) for parts in zip(*layers, strict=True)])
    total = added(overlap(layer) for layer in layers)
    assert (total.weights, total.kept, total.by_all, total.by_any) == (
        whole.weights,
        whole.kept,
        whole.by_all,
        whole.by_any,
    )
    assert total.densities == whole.densities


def test_tasks_are_compared_on_the_weights_that_they_use_only():
    kept = torch.tensor([True, True, False, False])
    components = Components({"root": ("a", "b", "c"), "branch": ("a", "b"), "head": ("c",)}, ("a", "b", "c"))
    masks = {
        "a": {"root": kept, "branch": kept},
        "b": {"root": ~kept, "branch": kept},
        "c": {"root": kept, "head": kept},
    }
    found = task_overlaps(masks, components)
    assert {name: (len(part.kept), part.iou) for name, part in found.items()} == {
        "root": (3, 0.0),
        "branch": (2, 1.0),
        "head": (1, 1.0),
    }
    pairs = pair_overlaps(masks)
    # a and b agree on branch and on nothing of root: 2 of 2 + 4.
    assert {tasks: part.iou for tasks, part in pairs.items()} == {
        ("a", "b"): pytest.approx(1 / 3),
        ("a", "c"): 1.0,
        ("b", "c"): 0.0,
    }
    assert pair_overlaps({"a": {"x": kept}, "b": {"y": kept}}) == {}


# The watershed


@pytest.mark.parametrize(
    ("ious", "place", "fall"), [(NYU, 16, 0.662), (CITYSCAPES, 28, 0.651), (TASKONOMY, 28, 0.893)]
)
def test_the_watershed_of_the_published_values(ious, place, fall):
    assert len(ious) == 33
    assert watershed(ious) == place
    assert lasting_falls(ious)[place] == pytest.approx(fall, abs=5e-4)


@pytest.mark.parametrize(("ious", "place"), [(NYU, 18), (CITYSCAPES, 28), (TASKONOMY, 26)])
def test_iou_stays_below_a_tenth_from_the_layers_that_the_paper_names(ious, place):
    assert stays_below(ious) == place


def test_the_published_values_are_those_of_the_released_files():
    path = Path(__file__).parents[2] / "shared" / "published" / "disparse_fig3_layer_iou.csv"
    if not path.exists():
        pytest.skip("the published numbers are not here")
    import csv

    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["plotted"] == "1"]
    for dataset, own in {"nyuv2": NYU, "cityscapes": CITYSCAPES, "taskonomy": TASKONOMY}.items():
        published = [float(row["iou"]) for row in rows if row["dataset"] == dataset]
        assert own == pytest.approx(published, abs=6e-5)
        assert (watershed(own), stays_below(own)) == (watershed(published), stays_below(published))


def test_a_fall_that_is_recovered_counts_only_as_far_as_it_is_not():
    # 0.9 to 0.1 is made good, but for a ninth; from 0.8 to 0.4 half is lost for good.
    assert lasting_falls([0.9, 0.1, 0.8, 0.4, 0.3]) == pytest.approx([0, 1 / 9, 0, 1 / 2, 1 / 4])
    assert watershed([0.9, 0.1, 0.8, 0.4, 0.3]) == 3


@given(st.lists(st.floats(0, 1), max_size=8))
def test_falls_are_what_every_later_layer_stays_below(ious):
    for place, fall in enumerate(lasting_falls(ious)):
        before = ious[place - 1] if place else 0
        ratios = [later / before for later in ious[place:]] if before else [1]
        assert fall == pytest.approx(max(0, min(1 - ratio for ratio in ratios)))


@pytest.mark.parametrize("ious", [[], [0.5], [0.5, 0.5], [0.2, 0.4, 0.9], [0.0, 0.0]])
def test_without_a_fall_there_is_no_watershed(ious):
    assert watershed(ious) is None


def test_what_follows_a_layer_without_agreement_is_no_fall():
    assert watershed([0.5, 0.0, 0.0]) == 1
    assert watershed([0.0, 0.5, 0.4]) == 2


@pytest.mark.parametrize(
    ("ious", "place"), [([0.5, 0.05, 0.2, 0.05, 0.1, 0.09], 5), ([0.5, 0.1], None), ([0.05], 0), ([], None)]
)
def test_staying_below_is_for_good(ious, place):
    assert stays_below(ious) == place


# The trunk


class Residual(nn.Module):
    """A stem, two residual blocks with a projection on the shortcut of the second, and a head for a and b."""

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(4, 6, 1, stride=2)  # registered first: the order is not that of registration
        self.last = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.two = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.heads = nn.ModuleDict({task: nn.Linear(6, 2) for task in "ab"})

    def forward(self, images):
        x = torch.relu_(self.norm(self.stem(images)))
        x = torch.relu(x + self.one(x))
        x = self.project(x) + self.last(torch.relu(self.two(x)))
        return {task: head(x.movedim(1, -1)).movedim(-1, 1) for task, head in self.heads.items()}


SHARED = ("project.weight", "last.weight", "stem.weight", "one.0.weight", "one.2.weight", "two.weight")
WAY = ("stem.weight", "one.0.weight", "one.2.weight", "two.weight", "last.weight")


def test_the_path_is_the_longest_way_and_a_projection_is_beside_it():
    trunk = trunk_of(Residual(), torch.zeros(1, 3, 8, 8), SHARED)
    assert trunk.path == WAY
    assert trunk.depths == dict(zip(WAY, range(1, 6), strict=True)) | {"project.weight": 4}


def test_a_branch_copies_what_comes_after_it():
    trunk = trunk_of(Residual(), torch.zeros(1, 3, 8, 8), SHARED)
    assert set(trunk.from_layer(4)) == {"last.weight"}
    # The projection takes the same features as two.weight, and is copied with it.
    assert set(trunk.from_layer(3)) == {"last.weight", "two.weight", "project.weight"}
    assert set(trunk.from_layer(0)) == set(SHARED)


def test_the_model_is_left_as_it_was_and_may_be_on_the_meta_device():
    model = Residual().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trunk = trunk_of(model, torch.ones(1, 3, 8, 8), SHARED)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.device("meta"):
        assert trunk_of(Residual(), torch.zeros(1, 3, 8, 8), SHARED) == trunk


def test_layers_of_a_head_are_not_of_the_trunk():
    trunk = trunk_of(Tree(), torch.zeros(1, 3, 6, 6), ["root.weight"])
    assert trunk == Trunk({"root.weight": 1}, ("root.weight",))
    assert trunk_of(Tree(), torch.zeros(1, 3, 6, 6), []) == Trunk({}, ())


class Normalised(nn.Conv2d):
    """A convolution whose weight is normalised, so that it is no direct input of the convolution."""

    def forward(self, images):
        return nn.functional.conv2d(images, self.weight - self.weight.mean(), self.bias)


def test_a_weight_may_be_changed_before_it_is_used_and_networks_may_be_deep():
    body = nn.Sequential(nn.Conv2d(3, 2, 1), *(Normalised(2, 2, 1) for _ in range(600)))

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body

        def forward(self, images):
            return {"a": self.body(images)}

    names = list(prunable(Deep()))
    trunk = trunk_of(Deep(), torch.zeros(1, 3, 4, 4), names)
    assert trunk.path == tuple(names)
    assert list(trunk.depths.values()) == list(range(1, 602))


def test_the_papers_network_has_the_layers_of_its_figure():
    model = load_registry().get("models", "deeplab-resnet34")
    with torch.device("meta"):
        network = model.build({"a": 2, "b": 3}, model.settings, "")
    shared = [name for name in prunable(network) if name.startswith("trunk")]
    trunk = trunk_of(network, torch.zeros(1, 3, 64, 64, device="meta"), shared)
    assert len(trunk.path) == 33
    assert [name for name in shared if name not in trunk.path] == [
        f"trunk.layer{stage}.0.downsample.0.weight" for stage in (2, 3, 4)
    ]


def test_the_cost_of_a_branch_can_be_counted():
    kept = torch.tensor([True, True, False, False])
    trunk = Trunk({"x": 1, "y": 2, "side": 2, "z": 3}, ("x", "y", "z"))
    parts = {
        "x": overlap([kept] * 3),
        "y": overlap([kept, kept, ~kept]),  # 6 kept by three copies, 4 by one
        "side": overlap([kept] * 3),  # 6 and 2
        "z": overlap([kept, ~kept, ~kept]),  # 6 and 4
    }
    branch = branch_at(1, trunk, parts)
    assert (branch.number, branch.name, branch.before, branch.after) == (1, "y", 1.0, 0.0)
    assert branch.dense == 2 * 12
    assert branch.kept == 2 + 4 + 2
    assert math.isnan(branch_at(0, trunk, parts).before)
    assert branch_at(0, trunk, parts).after == 1.0


# Tasks' own masks


def method(**changes):
    return Method(
        **{"name": "m", "score": saliency(), "scope": "per-task", "arbiter": OR, "schedule": once()} | changes
    )


@pytest.mark.parametrize("target", [0.5, 0.9])
def test_own_masks_merge_to_those_of_a_fixed_keep_ratio(target):
    weights = {"a": 1.0, "b": 3.0, "c": 1.0}
    view = scoring(Toy(weights), weights, "per-task")
    scores = saliency()(view)
    own = {task: own_masks(method(), task, scores[task], target) for task in weights}
    for rule, votes in ((OR, 1), (MAJORITY, 2)):
        merged = fixed_masks(method(arbiter=rule), scores, view.voters, target, FixedRatio(ties="index"))
        for name, mask in merged.items():
            users = [masks[name] for masks in own.values() if name in masks]
            assert torch.equal(sum(users, torch.zeros(mask.shape)) >= min(votes, len(users)), mask)


def test_own_masks_keep_the_highest_scores_of_a_task():
    scores = {"x": torch.tensor([5.0, 1.0, 3.0]), "y": torch.tensor([[4.0, 2.0], [0.0, 6.0]])}
    masks = own_masks(method(), "a", scores, 0.5)  # 7 - round(3.5) = 3 of 7
    assert masks["x"].tolist() == [True, False, False]
    assert masks["y"].tolist() == [[True, False], [False, True]]


def test_own_masks_are_shared_out_over_layers_as_the_method_does():
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(8, 8, size, size, generator=generator) for name, size in (("x", 1), ("y", 3))}
    by_layer = own_masks(method(allocation=Erk()), "a", {"x": scores["x"], "y": 9 + scores["y"]}, 0.5)
    same = own_masks(method(allocation=Erk()), "a", scores, 0.5)
    assert [int(mask.sum()) for mask in by_layer.values()] == [int(mask.sum()) for mask in same.values()]
    assert sum(int(mask.sum()) for mask in by_layer.values()) == 320
    assert int(own_masks(method(), "a", {"x": scores["x"], "y": 9 + scores["y"]}, 0.5)["x"].sum()) == 0


def test_pairs_are_in_the_order_of_the_tasks():
    masks = {task: {"w": torch.ones(1, dtype=torch.bool)} for task in "cab"}
    assert list(pair_overlaps(masks)) == list(itertools.combinations("cab", 2))
