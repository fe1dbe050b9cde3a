"""Masks of a method: exact, and equal to the papers' rule at the keep ratio that was found."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import pruning as reference
from toys import Toy, Tree, scoring

from mtlprune_bench import (
    AND,
    MAJORITY,
    OR,
    PER_TASK,
    Erk,
    FixedRatio,
    Method,
    Uniform,
    magnitude,
    noise,
    once,
    saliency,
)
from mtlprune_bench.errors import SparsityError
from mtlprune_bench.pruning.allocation import Group
from mtlprune_bench.pruning.masks import kept_count
from mtlprune_bench.pruning.prune import fixed_masks, make_masks, settle

STATIC = Method(name="toy", score=saliency(mode="eval"), scope=PER_TASK, arbiter=OR, schedule=once())
NEEDED = {"or": (OR, lambda n: 1), "and": (AND, lambda n: n), "majority": (MAJORITY, lambda n: -(-n // 2))}


def method(**axes):
    return Method(
        **{"name": "toy", "score": STATIC.score, "scope": PER_TASK, "arbiter": OR, "schedule": once(), **axes}
    )


def total(masks):
    return sum(int(mask.sum()) for mask in masks.values())


@given(st.data())
@settings(deadline=None, max_examples=150, derandomize=True)
def test_settled_masks_are_the_union_of_each_tasks_best_at_one_ratio(data):
    tasks = data.draw(st.integers(1, 4))
    shared = data.draw(st.integers(1, 8))
    name = data.draw(st.sampled_from(sorted(NEEDED)))
    number = st.integers(0, 40).map(float)
    own = [data.draw(st.integers(0, 5)) for _ in range(tasks)]
    scores = [data.draw(st.lists(number, min_size=shared + n, max_size=shared + n, unique=True)) for n in own]
    weights = shared + sum(own)
    kept = data.draw(st.integers(0, weights))

    named = {
        f"task{k}": {"shared": torch.tensor(values[:shared]), f"own{k}": torch.tensor(values[shared:])}
        for k, values in enumerate(scores)
    }
    arbiter, needed = NEEDED[name]
    names = ("shared", *(f"own{k}" for k in range(tasks)))
    masks = settle(method(arbiter=arbiter), named, Group(names, kept))
    found = [flag for key in names for flag in masks[key].tolist()]
    assert sum(found) == kept

    # The rule of the paper: each task keeps the share r of its weights, votes are counted, own parts stand.
    def rule(ratio):
        chosen = [[rank > 1 - ratio for rank in reference.rank_of_each(values)] for values in scores]
        verdict = reference.vote([mask[:shared] for mask in chosen], needed(tasks))
        return verdict + [flag for mask in chosen for flag in mask[shared:]]

    ratios = sorted({0.0, 1.0, *(1 - r + 1e-9 for v in scores for r in reference.rank_of_each(v))})
    below = max((r for r in ratios if sum(rule(r)) <= kept), default=0.0)
    above = min((r for r in ratios if sum(rule(r)) >= kept), default=1.0)
    assert all(a <= b for a, b in zip(rule(below), found, strict=True))
    assert all(a <= b for a, b in zip(found, rule(above), strict=True))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("scope", ["joint", "per-task"])
@pytest.mark.parametrize("allocation", [None, Uniform(), Erk()], ids=["global", "uniform", "erk"])
@pytest.mark.parametrize("network", [lambda: Toy("abc"), Tree], ids=["trunk", "tree"])
def test_sparsity_is_exact(sparsity, scope, allocation, network):
    axes = {} if allocation is None else {"allocation": allocation}
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    given_ = scoring(network(), weights, scope)
    masks = make_masks(method(scope=scope, **axes), given_, sparsity)
    count = sum(weight.numel() for weight in given_.weights.values())
    assert total(masks) == kept_count(count, sparsity)
    assert {name: mask.shape for name, mask in masks.items()} == {n: w.shape for n, w in given_.weights.items()}


def test_order_of_tasks_is_irrelevant():
    model = Toy("abc")
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    forward = make_masks(STATIC, scoring(model, weights, PER_TASK), 0.8)
    backward = make_masks(STATIC, scoring(model, dict(reversed(weights.items())), PER_TASK), 0.8)
    # The last bits of gradients depend on the order of the sums; a few weights at the threshold may differ.
    differing = sum(int((mask != backward[name]).sum()) for name, mask in forward.items())
    assert differing <= 2


def test_scaling_the_losses_changes_nothing_per_task():
    model = Toy("ab")
    one = make_masks(STATIC, scoring(model, {"a": 1.0, "b": 1.0}, PER_TASK), 0.8)
    two = make_masks(STATIC, scoring(model, {"a": 8.0, "b": 0.5}, PER_TASK), 0.8)
    assert all(torch.equal(mask, two[name]) for name, mask in one.items())


def test_one_task_alone_is_joint_to_the_bit():
    model = Toy("a")
    alone = make_masks(method(scope="per-task"), scoring(model, {"a": 1.0}, "per-task"), 0.7)
    joint = make_masks(method(scope="joint"), scoring(model, {"a": 1.0}, "joint"), 0.7)
    assert all(torch.equal(mask, joint[name]) for name, mask in alone.items())


def test_scores_that_ignore_the_task_make_every_arbiter_agree_on_the_trunk_order():
    model = Toy("ab")
    masks = make_masks(method(score=magnitude()), scoring(model, {"a": 1.0, "b": 1.0}, PER_TASK), 0.5)
    trunk = model.trunk[0].weight.detach().abs().flatten()
    kept = masks["trunk.0.weight"].flatten()
    assert trunk[kept].min() >= trunk[~kept].max()


def test_random_masks_overlap_as_chance_has_it_and_repeat():
    model = Toy("ab", width=48)
    rule = method(score=noise(), scope="joint")
    first, again, other = (
        make_masks(rule, scoring(model, {"a": 1.0, "b": 1.0}, "joint", seed), 0.5) for seed in (0, 0, 1)
    )
    assert all(torch.equal(mask, again[name]) for name, mask in first.items())
    count = sum(mask.numel() for mask in first.values())
    both = sum(int((mask & other[name]).sum()) for name, mask in first.items())
    assert both / count == pytest.approx(0.25, abs=0.02)


def test_what_is_removed_stays_removed():
    given_ = scoring(Toy("ab"), {"a": 1.0, "b": 1.0}, PER_TASK)
    half = make_masks(STATIC, given_, 0.5)
    most = make_masks(method(score=noise()), given_, 0.8, half)
    assert all((mask <= half[name]).all() for name, mask in most.items())


def test_a_fixed_ratio_keeps_each_tasks_share_and_reports_what_comes_out():
    scores = {
        "a": {"trunk": torch.tensor([5.0, 4, 3, 2]), "a": torch.tensor([1.0, 9])},
        "b": {"trunk": torch.tensor([1.0, 2, 8, 9]), "b": torch.tensor([3.0, 3])},
    }
    voters = [type("V", (), {"name": "a"}), type("V", (), {"name": "b"})]
    # A third of six is two each: task a keeps 9 and 5, task b 9 and 8; the union of the trunk has three.
    masks = fixed_masks(STATIC, scores, voters, 0.9, FixedRatio(keep_ratio=1 / 3))
    assert masks["trunk"].tolist() == [True, False, True, True]
    assert masks["a"].tolist() == [False, True]
    assert masks["b"].tolist() == [False, False]


def test_the_released_ties_keep_all_that_equal_the_last():
    scores = {"a": {"w": torch.tensor([3.0, 2, 2, 2, 1, 0, 0, 0, 0, 0])}}
    voters = [type("V", (), {"name": "a"})]
    kept = fixed_masks(STATIC, scores, voters, 0.8, FixedRatio())["w"]
    assert kept.tolist() == [True] * 4 + [False] * 6
    exact = fixed_masks(STATIC, scores, voters, 0.8, FixedRatio(ties="index"))["w"]
    assert exact.tolist() == [True] * 2 + [False] * 8
    everything = fixed_masks(STATIC, scores, voters, 0.4, FixedRatio())["w"]
    assert everything.all(), "with a threshold of zero the released rule removes nothing"


def test_scores_that_are_not_finite_are_refused_by_name():
    class Broken:
        name = "broken"

        def __call__(self, scoring):
            return {
                v.name: {n: torch.full_like(scoring.weights[n], torch.nan) for n in v.weights}
                for v in scoring.voters
            }

    with pytest.raises(SparsityError, match=r"'toy' scored weight 'trunk.0.weight'.*all tasks"):
        make_masks(method(score=Broken(), scope="joint"), scoring(Toy("a"), {"a": 1.0}, "joint"), 0.5)


def test_an_allocation_that_keeps_one_too_many_is_caught():
    class OneMore:
        name = "one-more"

        def groups(self, shapes, kept):
            return (Group(tuple(shapes), kept + 1),)

    with pytest.raises(SparsityError, match="kept instead of"):
        make_masks(method(allocation=OneMore()), scoring(Toy("a"), {"a": 1.0}, PER_TASK), 0.5)
