"""Learned methods: thresholds act and learn by the formula, stop by the rule, and leave plain weights behind."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from references import learned as reference
from torch import nn
from toys import Toy, Tree, batches, objective

from mtlprune_bench import Recipe, UsageError
from mtlprune_bench.errors import StoreError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.datasets.nyuv2 import TRAIN
from mtlprune_bench.pruning.components import discover
from mtlprune_bench.pruning.learned import AdaptiveWeights, LearnedMethod
from mtlprune_bench.pruning.masks import kept_count, sparsity
from mtlprune_bench.pruning.thresholds import Learner, SoftThreshold, groups

LOSSES = {"a": 1.0, "b": 20.0}
RECIPE = Recipe(steps=40, batch=2, crop=6, lr=1e-2, lr_decay_every=10, weight_decay=0.1)
S = "trunk.0.parametrizations.weight.0.s"
"""The name of the trunk's threshold, and of one for the whole network."""


def method(**changes):
    return LearnedMethod(**{"name": "toy", "group_by": "component", "s_init": -2.5, **changes})


def network(seed=0, tasks=LOSSES):
    torch.manual_seed(seed)
    return Toy(sorted(tasks))


def learner_of(model, target=0.9, recipe=RECIPE, losses=LOSSES, **changes):
    chosen = method(**changes)
    found = discover(model, torch.zeros(1, 3, 6, 6))
    return Learner(model, chosen, groups(chosen.group_by, found), objective(losses), recipe, target)


def optimizer_of(learner):
    return torch.optim.Adam(learner.parameter_groups(), lr=RECIPE.lr, fused=True)


def step_of(model, optimizer, number, learner=None, recipe=RECIPE):
    """Make one step of training, as the training loop does."""
    goal, batch = objective(LOSSES), batches(LOSSES)[number % 3]
    torch.manual_seed(number)
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(number) * group.get("factor", 1.0)
    model.train()
    losses = goal.losses(model(batch.images), batch)
    optimizer.zero_grad(set_to_none=True)
    if learner:
        learner.observe(losses, number)
    total = (learner or goal).total(losses)
    total.backward()
    if learner:
        learner.after_backward()
    optimizer.step()
    return total.detach()


def originals(model):
    """Return the trained weights of a model with thresholds, by the names they have without."""
    return {
        name.replace("parametrizations.weight.original", "weight"): weight
        for name, weight in model.named_parameters()
        if name.endswith("original")
    }


def effective(model):
    """Return the weights that the layers of `model` compute with."""
    return {
        f"{name}.weight": layer.weight.detach().clone()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def numbers(low, high):
    return st.floats(low, high, allow_nan=False, width=32)


@settings(deadline=None)
@given(weights=st.lists(numbers(-2, 2), min_size=1, max_size=8), s=numbers(-6, 3), data=st.data())
def test_the_softened_weights_and_both_gradients_are_those_of_the_formula(weights, s, data):
    values = np.array(weights)
    sigma = 1 / (1 + math.exp(-s))
    assume((np.abs(np.abs(values) - sigma) > 1e-4).all())  # at the kink there is no derivative
    factors = np.array(data.draw(st.lists(numbers(-3, 3), min_size=len(weights), max_size=len(weights))))

    def loss(softened):
        return (factors * softened + softened**2).sum()

    weight = torch.tensor(values, requires_grad=True)
    threshold = nn.Parameter(torch.tensor(s, dtype=torch.float64))
    softened = SoftThreshold(threshold)(weight)
    np.testing.assert_allclose(softened.detach().numpy(), reference.soften(values, s), rtol=1e-12, atol=1e-15)
    loss_of = (torch.tensor(factors) * softened + softened**2).sum()
    loss_of.backward()
    by_weight = reference.central_differences(lambda w: loss(reference.soften(w, s)), values)
    by_s = reference.central_differences(lambda x: loss(reference.soften(values, float(x[0]))), np.array([s]))
    np.testing.assert_allclose(weight.grad.numpy(), by_weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(threshold.grad.item(), by_s[0], rtol=1e-5, atol=1e-6)
    assert (weight.grad.numpy()[np.abs(values) < sigma] == 0).all()


def test_autograd_of_the_plain_formula_gives_the_same_gradients_bit_for_bit():
    torch.manual_seed(0)
    drawn, upstream = torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3, 3)
    found = []
    for formula in (None, lambda w, s: torch.sign(w) * torch.relu(w.abs() - torch.sigmoid(s))):
        weight, s = nn.Parameter(drawn.clone()), nn.Parameter(torch.tensor(-0.5))
        softened = SoftThreshold(s)(weight) if formula is None else formula(weight, s)
        softened.backward(upstream)
        found.append((softened.detach(), weight.grad, s.grad))
    assert all(torch.equal(ours, plain) for ours, plain in zip(*[pair[:2] for pair in found], strict=True))
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-5, atol=0)
    assert found[0][2] != 0


@pytest.mark.parametrize("s", [-104.0, -1000.0, -3200.0])
def test_a_threshold_of_zero_changes_no_weight_however_small_or_large(s):
    extremes = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38, math.inf, -math.inf]
    weight = torch.tensor(extremes, requires_grad=True)
    threshold = nn.Parameter(torch.tensor(s))
    softened = SoftThreshold(threshold)(weight)
    assert torch.equal(softened, weight)
    softened.sum().backward()
    assert weight.grad.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert threshold.grad == 0


@pytest.mark.parametrize("group_by", ["component", "layer", "network"])
@pytest.mark.parametrize("weighting", [None, AdaptiveWeights(begin=0.5)])
def test_with_a_threshold_of_zero_training_is_dense_training_bit_for_bit(group_by, weighting):
    dense, soft = network(), network()
    plain = torch.optim.Adam(dense.parameters(), weight_decay=RECIPE.weight_decay, fused=True)
    learner = learner_of(soft, group_by=group_by, s_init=-1000.0, weighting=weighting, travel=7.75)
    optimizer = optimizer_of(learner)
    assert learner.sparsity() == 0
    for number in range(5):
        assert torch.equal(step_of(dense, plain, number), step_of(soft, optimizer, number, learner))
        by_name = dict(dense.named_parameters())
        for name, weight in soft.named_parameters():
            twin = by_name.get(name.replace("parametrizations.weight.original", "weight"))
            if twin is not None:
                assert torch.equal(weight.grad, twin.grad)
                assert torch.equal(weight, twin)
        assert all(torch.equal(weight, by_name[name]) for name, weight in effective(soft).items())


def test_there_is_one_threshold_for_each_component_layer_or_network():
    found = {}
    for group_by in ("component", "layer", "network"):
        model = network()
        learner_of(model, group_by=group_by)
        found[group_by] = [name for name, _ in model.named_parameters() if name.endswith(".s")]
        convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        assert all(layer.parametrizations.weight[0].s.shape == () for layer in convolutions)
    heads = [f"heads.{task}.1.parametrizations.weight.0.s" for task in "ab"]
    assert found["component"] == [S, *heads]
    assert found["layer"] == [S, "trunk.3.parametrizations.weight.0.s", *heads]
    assert found["network"] == [S]


def test_groups_leave_out_what_no_task_uses_and_keep_partly_shared_weights_apart():
    components = discover(Tree(), torch.zeros(1, 3, 6, 6))
    assert list(groups("component", components)) == ["shared", "a+b", "a", "b", "c"]
    assert groups("component", components)["a+b"] == ("branch.weight",)
    used = tuple(components.users)
    assert groups("layer", components) == {name: (name,) for name in used}
    assert groups("network", components) == {"network": used}
    model = Tree()
    learner = Learner(
        model, method(), groups("component", components), objective(dict.fromkeys("abc", 1)), RECIPE, 0.5
    )
    assert "unused.weight" in dict(model.named_parameters())
    assert set(learner.finish()) == set(used)


class Twice(nn.Module):
    """A network that uses one weight in two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, images):
        return {"a": self.head(self.second(torch.tanh(self.first(images))))}


def test_a_weight_of_two_layers_is_softened_in_both_and_once_only():
    torch.manual_seed(0)
    model = Twice()
    before = model.first.weight.detach().clone()
    learner = learner_of(model, losses={"a": 1.0}, s_init=-1.0)
    expected = SoftThreshold(nn.Parameter(torch.tensor(-1.0)))(before)
    assert torch.equal(model.first.weight, expected)
    assert torch.equal(model.second.weight, expected)
    masks = learner.finish()
    assert list(masks) == ["first.weight", "head.weight"]
    assert torch.equal(model.first.weight, expected)
    assert model.second.weight is model.first.weight


def test_the_optimizer_gets_every_parameter_once_with_its_decay_epsilon_and_factor():
    model = network()
    learner = learner_of(model, group_by="layer", threshold_weight_decay=0.3, eps=1e-5, travel=2.0)
    rest, thresholds = learner.parameter_groups()
    everything = [id(parameter) for parameter in model.parameters()]
    assert sorted(everything) == sorted(id(p) for group in (rest, thresholds) for p in group["params"])
    named = dict(model.named_parameters())
    assert {id(s) for s in thresholds["params"]} == {id(s) for name, s in named.items() if name.endswith(".s")}
    # Learning rates of RECIPE add up to 10 (1 + 1/2 + 1/4 + 1/8) / 100 = 0.1875.
    assert (rest["weight_decay"], rest["eps"], rest["factor"]) == (0.1, 1e-5, 1)
    assert (thresholds["weight_decay"], thresholds["eps"]) == (0.3, 1e-5)
    assert thresholds["factor"] == pytest.approx(2 / 0.1875, rel=1e-12)
    built = optimizer_of(learner).param_groups
    assert [(group["weight_decay"], group["eps"]) for group in built] == [(0.1, 1e-5), (0.3, 1e-5)]
    assert [group["factor"] for group in built] == [rest["factor"], thresholds["factor"]]


def test_without_settings_of_their_own_thresholds_have_the_recipes_decay_and_rates():
    rest, thresholds = learner_of(network()).parameter_groups()
    for group in (rest, thresholds):
        assert (group["weight_decay"], group["eps"], group["factor"]) == (0.1, 1e-8, 1)


def test_on_the_recipe_of_nyuv2_the_travel_of_adapmtl_is_the_recipes_own():
    _, thresholds = learner_of(network(), recipe=TRAIN, travel=7.75).parameter_groups()
    assert thresholds["factor"] == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("steps", [200, 2000])
def test_thresholds_travel_as_far_in_a_short_training_as_in_a_long_one(steps):
    recipe = dataclasses.replace(RECIPE, steps=steps, lr_decay_every=steps // 5, weight_decay=5e-4)
    model = network()
    learner = learner_of(model, recipe=recipe, s_init=-20.0, travel=7.75)
    optimizer = optimizer_of(learner)
    (s, *_) = learner.parameter_groups()[1]["params"]
    s.grad = torch.zeros(())  # sigmoid(-20) is so small that the losses hardly matter; weight decay does
    for number in range(steps):
        optimizer.param_groups[1]["lr"] = recipe.lr_at(number) * optimizer.param_groups[1]["factor"]
        optimizer.step()
    # A little less than 7.75: as s shrinks, so does what it is divided by, but more slowly.
    assert s.item() == pytest.approx(-20 + 7.75, abs=0.6)


def test_the_sparsity_is_the_mean_of_the_components_sparsities_by_their_counts():
    model = network()
    learner = learner_of(model, s_init=-2.0)
    with torch.no_grad():
        model.heads["a"][1].parametrizations.weight[0].s.fill_(1)
        originals(model)["heads.b.1.weight"].fill_(0.0)
    components = discover(network(), torch.zeros(1, 3, 6, 6)).by_name()
    thresholds = {"shared": -2.0, "a": 1.0, "b": -2.0}
    fractions, counts = [], []
    for component, names in components.items():
        weights = np.concatenate([originals(model)[name].detach().numpy().ravel() for name in names])
        zero = reference.soften(weights.astype(np.float64), thresholds[component]) == 0
        fractions.append(zero.mean())
        counts.append(len(zero))
    assert fractions[1:] == [1, 1]
    assert 0 < fractions[0] < 1
    overall = learner.sparsity()
    assert overall.shape == ()
    assert overall.item() == pytest.approx(np.average(fractions, weights=counts), rel=1e-12)
    assert overall.item() == sparsity(learner.finish())


def test_weights_at_the_threshold_count_as_zero():
    model = network()
    learner = learner_of(model, group_by="network", s_init=0.0)
    with torch.no_grad():
        for weight in originals(model).values():
            weight.fill_(-0.5)
    assert learner.sparsity() == 1
    assert all((weight == 0).all() for weight in effective(model).values())
    assert sparsity(learner.finish()) == 1


def frozen(model, optimizer):
    """Return copies of every threshold and its Adam state."""
    thresholds = [s for name, s in model.named_parameters() if name.endswith(".s")]
    states = [value for s in thresholds for value in optimizer.state[s].values()]
    return [tensor.detach().clone() for tensor in (*thresholds, *states)]


def set_sparse(model, fraction):
    """Set this fraction of each prunable weight to zero, and the rest far from it."""
    with torch.no_grad():
        for weight in originals(model).values():
            weight.fill_(1.0)
            weight.view(-1)[: round(fraction * weight.numel())] = 0.0


@pytest.mark.parametrize("latch", [False, True])
def test_at_the_sparsity_asked_for_thresholds_and_their_adam_state_stand_still(latch):
    model = network()
    learner = learner_of(model, target=0.5, s_init=-20.0, latch=latch)
    optimizer = optimizer_of(learner)

    def moved(number):
        before = frozen(model, optimizer)
        step_of(model, optimizer, number, learner)
        return [not torch.equal(old, new) for old, new in zip(before, frozen(model, optimizer), strict=True)]

    set_sparse(model, 0.0)
    step_of(model, optimizer, 0, learner)
    assert len(frozen(model, optimizer)) == 3 + 3 * 3
    assert all(moved(1))
    set_sparse(model, 0.75)
    assert not any(moved(2))
    assert learner.state()["stopped"]
    set_sparse(model, 0.0)
    assert moved(3) == [not latch] * 12
    fresh_model = network()
    fresh = learner_of(fresh_model, target=0.5, s_init=-20.0, latch=latch)
    fresh.restore(learner.state())
    set_sparse(fresh_model, 0.0)
    model, optimizer, learner = fresh_model, optimizer_of(fresh), fresh
    step_of(model, optimizer, 4, learner)
    assert all((s in optimizer.state) != latch for s in fresh.parameter_groups()[1]["params"])


def test_thresholds_stop_only_at_the_sparsity_and_not_before():
    found = {}
    for target in (0.5, 0.51):
        model = network()
        learner = learner_of(model, target=target, s_init=-20.0)
        set_sparse(model, 0.5)
        assert learner.sparsity() == 0.5
        step_of(model, optimizer_of(learner), 0, learner)
        found[target] = [s.grad is None for s in learner.parameter_groups()[1]["params"]]
    assert found == {0.5: [True] * 3, 0.51: [False] * 3}


@pytest.mark.parametrize("s_init", [-1000.0, -3.0])
def test_zeros_stay_zero_and_the_rest_learns(s_init):
    model = network()
    learner = learner_of(model, s_init=s_init)
    optimizer = optimizer_of(learner)
    generator = torch.Generator().manual_seed(1)
    holes = {name: torch.rand(w.shape, generator=generator) < 0.6 for name, w in originals(model).items()}
    before = {}
    with torch.no_grad():
        for name, weight in originals(model).items():
            weight.masked_fill_(holes[name], 0.0)
            before[name] = weight.clone()
    for number in range(10):
        step_of(model, optimizer, number, learner)
        for name, weight in originals(model).items():
            assert (weight[holes[name]] == 0).all()
    for name, weight in originals(model).items():
        assert (weight[~holes[name]] != before[name][~holes[name]]).all()


def weights_over(losses, begin, window, relative=True, interrupt=None):
    """Return the learner's weights at every step of `losses` [T, K], and each step's total."""
    tasks = {f"t{number}": number + 1.0 for number in range(losses.shape[1])}
    recipe = dataclasses.replace(RECIPE, steps=len(losses))
    weighting = AdaptiveWeights(begin=begin, window=window, relative=relative)

    def fresh():
        return learner_of(network(tasks=tasks), recipe=recipe, losses=tasks, weighting=weighting)

    learner, seen, totals = fresh(), [], []
    for step, row in enumerate(losses):
        if step == interrupt:
            kept = learner.state()
            learner = fresh()
            learner.restore(kept)
        observed = dict(zip(tasks, torch.tensor(row, dtype=torch.float32), strict=True))
        learner.observe(observed, step)
        totals.append(learner.total(observed))
        seen.append(learner.state()["weights"].numpy())
    return np.array(seen), torch.stack(totals).numpy()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    tasks=st.integers(1, 5),
    steps=st.integers(1, 60),
    begin=st.integers(0, 40),
    window=st.integers(1, 20),
    relative=st.booleans(),
    interrupt=st.integers(0, 59),
)
# 15 / 22 * 22 and 3 / 47 * 47 are a little less than whole numbers.
@example(seed=0, tasks=2, steps=22, begin=15, window=2, relative=True, interrupt=18)
@example(seed=0, tasks=2, steps=47, begin=2, window=3, relative=True, interrupt=4)
def test_loss_weights_follow_the_released_rule_also_after_a_resume(
    seed, tasks, steps, begin, window, relative, interrupt
):
    assume(begin < steps)
    assume(window <= steps)
    losses = np.random.default_rng(seed).lognormal(sigma=0.5, size=(steps, tasks)).astype(np.float32)
    expected = reference.adaptive_weights(losses.astype(np.float64), begin, window, relative)
    fractions = (begin / steps, window / steps, relative)
    seen, totals = weights_over(losses, *fractions)
    np.testing.assert_allclose(seen, expected, rtol=1e-10)
    np.testing.assert_allclose(seen.sum(1), tasks, rtol=1e-12)
    # The first step with more changes than fit into the window: begin, then window + 1 changes.
    assert (seen[: begin + window + 1] == 1).all()
    np.testing.assert_allclose(totals, (expected * losses * (np.arange(tasks) + 1)).sum(1), rtol=1e-5)
    again, totals_again = weights_over(losses, *fractions, interrupt=interrupt % steps)
    assert (again == seen).all()
    assert (totals_again == totals).all()


def test_on_the_recipe_of_nyuv2_weights_change_first_at_the_step_of_the_released_code():
    tasks = {"a": 1.0, "b": 1.0}
    learner = learner_of(network(), recipe=TRAIN, losses=tasks, weighting=AdaptiveWeights())
    levels = torch.tensor([[1.0, 2.0], [1.5, 2.1]])
    ones = []
    for step in range(4990, 5510):  # the losses before change nothing
        learner.observe(dict(zip("ab", levels[step % 2], strict=True)), step)
        ones.append(bool((learner.state()["weights"] == 1).all()))
    assert ones == [step < 5501 for step in range(4990, 5510)]
    # Half of the 500 changes are 0.5 / 1 and 0.1 / 2, half are 0.5 / 1.5 and 0.1 / 2.1.
    means = np.array([(0.5 + 0.5 / 1.5) / 2, (0.1 / 2 + 0.1 / 2.1) / 2])
    np.testing.assert_allclose(learner.state()["weights"], 2 * means / means.sum(), rtol=1e-6)


def test_no_gradient_flows_through_the_weights():
    losses = np.random.default_rng(0).uniform(0.5, 2, size=(12, 2))
    recipe = dataclasses.replace(RECIPE, steps=12)
    learner = learner_of(network(), recipe=recipe, weighting=AdaptiveWeights(begin=0.0, window=0.25))
    for step, row in enumerate(losses):
        leaves = {task: torch.tensor(value, requires_grad=True) for task, value in zip("ab", row, strict=True)}
        learner.observe(leaves, step)
        learner.total(leaves).backward()
        weights = learner.state()["weights"]
        found = torch.stack([leaf.grad for leaf in leaves.values()])
        torch.testing.assert_close(found, torch.tensor([1.0, 20.0]).double() * weights, rtol=1e-12, atol=0)
    assert not (weights == 1).any()


def test_losses_that_do_not_change_leave_the_weights_and_a_loss_of_zero_counts_as_unchanged():
    moving = [[1.0, 1.0], [2.0, 1.0], [1.0, 1.5], [2.0, 1.0]]
    losses = np.array([*moving, *[[2.0, 1.0]] * 4, [0.0, 2.0], [0.0, 1.0]])
    seen, totals = weights_over(losses, 0.0, 0.2)
    assert np.isfinite(seen).all()
    assert np.isfinite(totals).all()
    assert not (seen[3] == 1).any()
    # Step 5 is the first whose window of two holds no change at all.
    assert (seen[5] == seen[4]).all()
    assert (seen[7] == seen[4]).all()
    # The first task's fall to 0 counts for nothing, so that all the weight is the second's.
    assert seen[8].tolist() == [0, 2]


def test_training_resumed_in_the_middle_is_the_same_to_the_bit():
    def build():
        model = network()
        learner = learner_of(
            model,
            target=0.6,
            s_init=-4.0,
            travel=7.75,
            weighting=AdaptiveWeights(begin=0.1, window=0.1),
        )
        return model, learner, optimizer_of(learner)

    model, learner, optimizer = build()
    spots = []
    for number in range(30):
        if number == 17:
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            adam = {
                name: {key: value.clone() for key, value in optimizer.state[parameter].items()}
                for name, parameter in model.named_parameters()
            }
            kept = learner.state()
        step_of(model, optimizer, number, learner)
        spots.append(learner.sparsity().item())
    assert spots[0] < 0.6 <= spots[-1], "the thresholds stop on the way"
    assert (learner.state()["weights"] != 1).all()
    again, learner_again, optimizer_again = build()
    again.load_state_dict(weights)
    for name, parameter in again.named_parameters():
        optimizer_again.state[parameter] = adam[name]
    learner_again.restore(kept)
    for number in range(17, 30):
        step_of(again, optimizer_again, number, learner_again)
    first, second = learner.finish(), learner_again.finish()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_state_of_another_method_or_recipe_is_refused():
    plain = learner_of(network())
    weighted = learner_of(network(), weighting=AdaptiveWeights(window=0.1))
    wider = learner_of(network(), weighting=AdaptiveWeights(window=0.2))
    for learner, other in ((plain, weighted), (weighted, plain), (weighted, wider)):
        with pytest.raises(StoreError, match="another run"):
            learner.restore(other.state())


@pytest.mark.parametrize("group_by", ["component", "layer", "network"])
def test_the_finished_network_computes_what_the_one_with_thresholds_did(group_by):
    model = network()
    names = [name for name, _ in model.named_parameters()]
    learner = learner_of(model, group_by=group_by, s_init=-2.0)
    optimizer = optimizer_of(learner)
    for number in range(5):
        step_of(model, optimizer, number, learner)
    model.eval()
    images = batches(LOSSES)[0].images
    before, weights, reached = model(images), effective(model), learner.sparsity().item()
    identities = {name: id(weight) for name, weight in originals(model).items()}
    masks = learner.finish()
    after = model(images)
    assert all(torch.equal(before[task], after[task]) for task in before)
    assert sorted(name for name, _ in model.named_parameters()) == sorted(names)
    assert all(type(layer) is nn.Conv2d for layer in model.modules() if isinstance(layer, nn.Conv2d))
    parameters = dict(model.named_parameters())
    assert list(masks) == list(weights)
    for name, mask in masks.items():
        assert id(parameters[name]) == identities[name]
        assert type(parameters[name]) is nn.Parameter
        assert torch.equal(parameters[name], weights[name])
        assert torch.equal(mask, weights[name] != 0)
        assert not torch.signbit(parameters[name][~mask]).any()
    assert 0 < reached < 1
    assert sparsity(masks) == pytest.approx(reached, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    target=st.floats(0, 0.99),
    s_init=st.sampled_from([-1000.0, -3.0, -1.0, 3.0]),
    group_by=st.sampled_from(["component", "layer"]),
    ties=st.booleans(),
)
def test_finalized_exactly_the_highest_margins_are_kept(target, s_init, group_by, ties):
    model = network()
    if ties:
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_((weight * 4).round() / 4)
    learner = learner_of(model, target=target, group_by=group_by, s_init=s_init, exact_finalize=True)
    before = {name: weight.detach().clone() for name, weight in originals(model).items()}
    soft = effective(model)
    reached = learner.sparsity().item()
    masks = learner.finish()
    assert list(masks) == list(before)
    sigma = torch.sigmoid(torch.tensor(s_init))
    margins = np.concatenate([(weight.abs() - sigma).numpy().ravel() for weight in before.values()])
    kept = kept_count(len(margins), target)
    flat = np.concatenate([mask.numpy().ravel() for mask in masks.values()])
    assert flat.sum() == kept
    assert (flat == reference.keep_highest(margins, kept)).all()
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        assert torch.equal(parameters[name], torch.where(mask, soft[name], 0.0))
        assert not torch.signbit(parameters[name][parameters[name] == 0]).any()
    left = sum(int((parameters[name] != 0).sum()) for name in masks)
    assert left == min(kept, round((1 - reached) * len(margins)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_by": "tensor"}, "group_by of method 'toy'"),
        ({"s_init": math.nan}, "s_init of method 'toy' is nan; it must be finite"),
        ({"s_init": -math.inf}, "s_init"),
        ({"eps": 0.0}, "eps of method 'toy' is 0.0; it must be above 0"),
        ({"eps": math.inf}, "eps"),
        ({"eps": math.nan}, "eps"),
        (
            {"threshold_weight_decay": -1e-4},
            "threshold_weight_decay of method 'toy' is -0.0001; it must be 0 or more",
        ),
        ({"threshold_weight_decay": math.inf}, "threshold_weight_decay"),
        ({"travel": 0.0}, "travel of method 'toy' is 0.0; it must be above 0"),
        ({"travel": math.inf}, "travel"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        method(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"begin": -0.1}, r"begin of adaptive weights is -0.1; it must be in \[0, 1\)"),
        ({"begin": 1.0}, "begin"),
        ({"begin": math.nan}, "begin"),
        ({"window": 0.0}, r"window of adaptive weights is 0.0; it must be in \(0, 1\]"),
        ({"window": 1.5}, "window"),
    ],
)
def test_settings_of_adaptive_weights_out_of_range_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        AdaptiveWeights(**changes)


def test_the_registered_methods_differ_in_what_shares_a_threshold():
    registry = load_registry()
    found = {name: registry.get("methods", name) for name in ("adapmtl", "adapmtl-single-threshold", "str")}
    assert [entry.group_by for entry in found.values()] == ["component", "network", "layer"]
    assert [entry.weighting for entry in found.values()] == [AdaptiveWeights(), AdaptiveWeights(), None]
    assert all((entry.s_init, entry.travel) == (-20, 7.75) for entry in found.values())
    axes = {item.name for item in dataclasses.fields(LearnedMethod) if "help" in item.metadata}
    for entry in found.values():
        assert entry.paper.startswith("https://arxiv.org/abs/")
        assert entry.description
        assert {name.split(".")[0] for name in entry.sources} <= axes | {"variant"}
        for changes in entry.variants.values():
            assert dataclasses.replace(entry, **changes) != entry
