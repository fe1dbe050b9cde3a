"""Scorers: formulas against autograd written out, and no trace left in the model."""

from dataclasses import replace

import pytest
import torch
from toys import Toy, batches, objective, scoring

from mtlprune_bench import UsageError, Voter, gradient, gradient_flow, magnitude, noise, saliency, voter_gradients
from mtlprune_bench.pruning.gradients import take_gradients
from mtlprune_bench.tasks import Batch

LOSS_WEIGHTS = {"a": 1.0, "b": 20.0}


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Toy(LOSS_WEIGHTS)


@pytest.mark.parametrize("scope", ["joint", "per-task"])
@pytest.mark.parametrize("merge", ["absolute", "signed"])
def test_saliency_is_weight_times_gradient(model, scope, merge):
    model.eval()
    given = scoring(model, LOSS_WEIGHTS, scope)
    scores = saliency(batches=3, mode="eval", merge=merge)(given)
    for voter in given.voters:
        total = dict.fromkeys(voter.weights, 0)
        for batch in batches(LOSS_WEIGHTS):
            model.zero_grad()
            losses = objective(LOSS_WEIGHTS).losses(model(batch.images), batch)
            sum(factor * losses[task] for task, factor in voter.losses.items()).backward()
            for name in voter.weights:
                product = given.weights[name].detach() * given.weights[name].grad
                total[name] = total[name] + (product.abs() if merge == "absolute" else product)
        for name in voter.weights:
            torch.testing.assert_close(scores[voter.name][name], total[name].abs(), rtol=1e-5, atol=1e-8)


def test_the_power_of_the_weight_makes_gradient_saliency_and_gradient_flow(model):
    given = scoring(model, LOSS_WEIGHTS, "per-task")
    plain, product, flow = (
        scorer(batches=2, mode="eval")(given) for scorer in (gradient, saliency, gradient_flow)
    )
    for voter in given.voters:
        for name in voter.weights:
            weight = given.weights[name].detach().abs()
            torch.testing.assert_close(product[voter.name][name], plain[voter.name][name] * weight)
            torch.testing.assert_close(flow[voter.name][name], plain[voter.name][name] * weight**2)
    assert [scorer().name for scorer in (gradient, saliency, gradient_flow)] == [
        *("gradient", "saliency", "gradient-flow")
    ]


def test_no_batches_of_its_own_means_the_batch_that_training_is_at(model):
    data = batches(LOSS_WEIGHTS)
    given = replace(scoring(model, LOSS_WEIGHTS, "joint"), current=data[1])
    current = gradient(batches=0, mode="eval")(given)
    own = gradient(mode="eval")(replace(given, batches=lambda count: data[1:2]))
    assert all(torch.equal(score, own["all tasks"][name]) for name, score in current["all tasks"].items())
    with pytest.raises(UsageError, match="before training there is no batch yet"):
        gradient(batches=0)(scoring(model, LOSS_WEIGHTS, "joint"))


def test_a_batch_in_parts_is_scored_as_that_many_batches(model):
    data = batches(LOSS_WEIGHTS)[:1]
    whole = scoring(model, LOSS_WEIGHTS, "per-task")
    parts = [Batch(*(pick(number) for pick in pickers(data[0]))) for number in (0, 1)]
    cut = gradient(mode="eval", parts=2)(replace(whole, batches=lambda count: data))
    apart = gradient(mode="eval", batches=2)(replace(whole, batches=lambda count: parts))
    for voter, scores in cut.items():
        assert all(torch.equal(score, apart[voter][name]) for name, score in scores.items())
    assert gradient(batches=0, parts=2, forward="per-voter").passes(3) == (6, 6)


def pickers(batch):
    """Return functions that give image `number` of a batch: its images, targets and masks."""
    return (
        lambda number: batch.images[number : number + 1],
        lambda number: {task: target[number : number + 1] for task, target in batch.targets.items()},
        lambda number: {task: mask[number : number + 1] for task, mask in batch.masks.items()},
    )


@pytest.mark.parametrize(
    "scorer",
    [
        saliency(batches=2),
        saliency(batches=2, init="xavier"),
        saliency(init="variance-scaling", mode="eval"),
        saliency(forward="per-voter"),
        gradient(batches=2, parts=2),
        gradient_flow(batches=2, merge="signed"),
        magnitude(),
        noise(),
    ],
    ids=str,
)
def test_scoring_leaves_no_trace_and_repeats(model, scorer):
    model.train()
    model.trunk[1].eval()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = scorer(scoring(model, LOSS_WEIGHTS, "per-task"))
    second = scorer(scoring(model, LOSS_WEIGHTS, "per-task"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for voter, own in first.items():
        assert all(torch.equal(score, second[voter][name]) for name, score in own.items())
        assert all(torch.isfinite(score).all() and (score >= 0).all() for score in own.values())


def test_one_forward_for_all_voters_gives_the_gradients_of_one_each_without_dropout(model):
    given = scoring(model, LOSS_WEIGHTS, "per-task")
    shared = saliency(batches=2, mode="eval")(given)
    each = saliency(batches=2, mode="eval", forward="per-voter")(given)
    for voter, own in shared.items():
        for name, score in own.items():
            torch.testing.assert_close(score, each[voter][name])


def test_scores_of_fresh_weights_do_not_depend_on_the_models_own(model):
    first = saliency(init="xavier", mode="eval")(scoring(model, LOSS_WEIGHTS, "joint"))
    with torch.no_grad():
        for layer in (model.trunk[0], model.trunk[3], model.heads["a"][1]):
            layer.weight.mul_(3)
    second = saliency(init="xavier", mode="eval")(scoring(model, LOSS_WEIGHTS, "joint"))
    assert all(torch.equal(score, second["all tasks"][name]) for name, score in first["all tasks"].items())


def test_a_weight_of_zero_scores_zero(model):
    with torch.no_grad():
        model.trunk[0].weight[0] = 0
    score = saliency()(scoring(model, LOSS_WEIGHTS, "joint"))["all tasks"]["trunk.0.weight"]
    assert (score[0] == 0).all()
    assert (score[1] > 0).any()


def test_scaling_a_loss_scales_its_scores():
    model = Toy("a")
    one = saliency(mode="eval")(scoring(model, {"a": 1.0}, "joint"))["all tasks"]
    four = saliency(mode="eval")(scoring(model, {"a": 4.0}, "joint"))["all tasks"]
    assert all(torch.equal(4 * score, four[name]) for name, score in one.items())


@pytest.mark.parametrize("init", ["xavier", "variance-scaling"])
def test_fresh_weights_have_the_spread_of_their_initialisation(init):
    from mtlprune_bench.pruning.scorers import draw_weights

    weight = draw_weights(torch.Size((256, 128, 3, 3)), init, torch.Generator().manual_seed(0))
    fan_in, fan_out = 128 * 9, 256 * 9
    expected = (2 / (fan_in + fan_out) if init == "xavier" else 1 / fan_in) ** 0.5
    assert float(weight.std()) == pytest.approx(expected, rel=0.01)


def test_passes_are_counted():
    assert saliency(batches=50).passes(5) == (50, 250)
    assert saliency(batches=50, forward="per-voter").passes(5) == (250, 250)
    assert noise().passes(1) == magnitude().passes(1) == (0, 0)


def test_gradients_are_handed_over_as_they_come_and_are_those_of_voter_gradients():
    weight, other = (
        torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(n))) for n in (0, 1)
    )
    weights = {"twice": weight, "once": other}
    voters = [Voter("a", {"a": 1.0}, ("twice", "once")), Voter("b", {"b": 2.0}, ("twice",))]

    def losses(batch):
        hidden = torch.tanh(batch @ weight)
        return {"a": (hidden @ weight @ other).square().sum(), "b": (hidden @ weight).abs().sum()}

    batch = torch.ones(2, 4)
    for shared in (True, False):
        expected = {
            (voter.name, name): gradient
            for voter, gradients in voter_gradients(losses, batch, voters, weights, shared)
            for name, gradient in zip(voter.weights, gradients, strict=True)
        }
        found = {}

        def take(voter, name, gradient, found=found):
            assert (voter.name, name) not in found
            found[voter.name, name] = gradient

        take_gradients(losses, batch, voters, weights, take, shared)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
        assert weight.grad is None
        assert not weight._backward_hooks
