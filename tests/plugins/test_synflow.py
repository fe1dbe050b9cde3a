"""SynFlow: flows against products of matrices and removal of single weights, and no layer that runs dry."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from references import flow as reference
from torch import nn
from toys import Toy, scoring

from mtlprune_bench import JOINT, PER_TASK, Method, once
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.methods.synflow import SynFlow
from mtlprune_bench.pruning.masks import kept_count
from mtlprune_bench.pruning.prune import make_masks
from mtlprune_bench.tasks import Batch

SIZE = 6
"""Side in pixels of the images of `toys.batches`."""

WEIGHTS = {"a": 1.0, "b": 20.0}


class Chain(nn.Module):
    """Convolutions without bias, one after the other, with rectifiers between them: one task."""

    def __init__(self, widths=(3, 8, 5, 7, 2), size=1):
        super().__init__()
        layers = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, size, padding=size // 2, bias=False), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, images):
        return {"a": self.layers(images)}


class Rich(nn.Module):
    """Everything that a positive network may hold: biases, batch norm of any sign, dropout, two heads."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 3, 3)
        self.dropout = nn.Dropout(0.5)
        self.heads = nn.ModuleDict({task: nn.Conv2d(3, 2, 1) for task in "ab"})
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([-1.5, 0.5, 2.0, 0.0]))
            self.norm.bias.copy_(torch.tensor([0.1, -0.2, 0.0, 0.3]))

    def forward(self, images):
        features = self.dropout(torch.relu(self.second(torch.relu(self.norm(self.first(images))))))
        return {task: head(features) for task, head in self.heads.items()}


def built(kind, seed=0, **settings):
    torch.manual_seed(seed)
    return kind(**settings)


def numbers(tensor):
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.6], ids=["dense", "sparse"])
def test_every_layer_of_a_chain_has_the_same_sum(kernel, share):
    model = built(Chain, size=kernel)
    with torch.no_grad():
        for weight in model.parameters():
            weight[torch.rand(weight.shape) < share] = 0
    scores = SynFlow()(scoring(model, {"a": 1.0}, JOINT))["all tasks"]
    sums = [float(score.sum()) for score in scores.values()]
    assert sums[0] > 0
    np.testing.assert_allclose(sums, sums[0], rtol=1e-12)


def test_what_flows_into_a_unit_flows_out_of_it():
    model = built(Chain, size=3)
    first, second, third, _ = SynFlow()(scoring(model, {"a": 1.0}, JOINT))["all tasks"].values()
    torch.testing.assert_close(first.sum((1, 2, 3)), second.sum((0, 2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(second.sum((1, 2, 3)), third.sum((0, 2, 3)), rtol=1e-12, atol=0)


def test_a_chain_has_the_scores_of_the_product_of_its_matrices():
    model = built(Chain)
    scores = SynFlow()(scoring(model, {"a": 1.0}, JOINT))["all tasks"]
    matrices = [numbers(weight)[:, :, 0, 0] for weight in model.parameters()]
    expected = reference.chain_scores(matrices, SIZE * SIZE)
    assert len(scores) == len(expected) == 4
    for score, flow in zip(scores.values(), expected, strict=True):
        assert score.dtype == torch.float64
        np.testing.assert_allclose(numbers(score)[:, :, 0, 0], flow, rtol=1e-12)


def test_a_chain_by_hand():
    model = Chain((3, 2, 1))
    first, second = model.parameters()
    with torch.no_grad():
        first.copy_(torch.tensor([[1.0, -2, 0], [3, 0, 1]])[:, :, None, None])
        second.copy_(torch.tensor([[-5.0, 1]])[:, :, None, None])
    scores = SynFlow()(scoring(model, {"a": 1.0}, JOINT))["all tasks"]
    # Units take in 3 and 4 and are passed on with 5 and 1: 15 + 4 = 19 through each layer, at each of 36 pixels.
    assert (scores["layers.0.weight"].squeeze() / 36).tolist() == [[5, 10, 0], [3, 0, 1]]
    assert (scores["layers.2.weight"].flatten() / 36).tolist() == [15, 4]


@pytest.mark.parametrize("scope", [JOINT, PER_TASK])
def test_a_score_is_what_no_longer_flows_without_the_weight(scope):
    model = built(Rich)
    scores = SynFlow()(scoring(model, WEIGHTS, scope))
    trunk = [
        ("conv", numbers(model.first.weight), numbers(model.first.bias), 1),
        ("norm", numbers(model.norm.weight), numbers(model.norm.bias), model.norm.eps),
        ("conv", numbers(model.second.weight), numbers(model.second.bias), 0),
    ]
    flows = {
        task: reference.removal_scores([*trunk, ("conv", numbers(head.weight), numbers(head.bias), 0)], SIZE)
        for task, head in model.heads.items()
    }
    for task, (first, second, head) in flows.items():
        if scope == JOINT:
            other = flows["b" if task == "a" else "a"]
            first, second = first + other[0], second + other[1]
        expected = {"first.weight": first, "second.weight": second, f"heads.{task}.weight": head}
        own = scores["all tasks" if scope == JOINT else task]
        assert set(expected) <= set(own)
        assert len(own) == (4 if scope == JOINT else 3)
        for name, flow in expected.items():
            np.testing.assert_allclose(numbers(own[name]), flow, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [Rich, lambda: Toy("ab")], ids=["rich", "toy"])
@pytest.mark.parametrize("scope", [JOINT, PER_TASK])
def test_scoring_leaves_no_trace_and_repeats(dtype, build, scope):
    model = built(build).train()
    given = scoring(model, WEIGHTS, scope)
    model.to(dtype)
    next(model.children()).eval()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = -0.0
    marked = next(model.parameters())
    marked.grad = torch.ones_like(marked)
    before = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    first, second = SynFlow()(given), SynFlow()(given)
    assert {name: value.numpy().tobytes() for name, value in model.state_dict().items()} == before
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert (marked.grad == 1).all()
    assert all(p.requires_grad and p.dtype == dtype for p in model.parameters())
    assert all(p.grad is None for p in model.parameters() if p is not marked)
    for voter, own in first.items():
        for name, score in own.items():
            assert torch.equal(score, second[voter][name])
            assert torch.isfinite(score).all()
            assert (score >= 0).all()
            assert not score.requires_grad
            assert score.shape == given.weights[name].shape


def equal(first, second):
    return all(
        torch.equal(score, second[voter][name]) for voter, own in first.items() for name, score in own.items()
    )


def test_images_labels_and_losses_are_not_looked_at_but_for_their_size():
    given = scoring(built(Rich), WEIGHTS, PER_TASK)
    expected = SynFlow()(given)

    def refuse(*_):
        raise AssertionError("a loss was asked for")

    def batches(size):
        return lambda count: [Batch(torch.full((2, 3, size, size), torch.nan), {}, {})]

    blind = replace(given, batches=batches(SIZE), losses=refuse, seed=7)
    assert equal(SynFlow()(blind), expected)
    assert not equal(SynFlow()(replace(blind, batches=batches(SIZE + 2))), expected)
    weighted = scoring(given.model, {"a": 300.0, "b": 0.1}, JOINT)
    assert equal(SynFlow()(weighted), SynFlow()(scoring(given.model, WEIGHTS, JOINT)))


def test_signs_and_trained_statistics_change_nothing_and_size_of_weights_does():
    model = built(Rich)
    given = scoring(model, WEIGHTS, PER_TASK)
    expected = SynFlow()(given)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.randn(parameter.shape).sign())
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.1, 9)
    assert equal(SynFlow()(given), expected)
    with torch.no_grad():
        model.norm.weight.mul_(2)
    assert not equal(SynFlow()(given), expected)


def test_scores_are_positive_where_layers_make_negative_values():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4), nn.Conv2d(4, 2, 1))

        def forward(self, images):
            return {"a": self.layers(images)}

    scores = SynFlow()(scoring(built(Normed), {"a": 1.0}, JOINT))["all tasks"]
    assert all((score >= 0).all() and (score > 0).any() for score in scores.values())


def test_buffers_are_made_positive_and_whole_numbers_stay_as_they_are():
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1, bias=False)
            self.register_buffer("order", torch.tensor([2, 0, 1]))
            self.register_buffer("factors", torch.tensor([-3.0, 1.0]))

        def forward(self, images):
            features = self.layer(images[:, self.order])
            return {"a": features * self.factors[0] + features * self.factors[1]}

    model = built(Buffered)
    score = SynFlow()(scoring(model, {"a": 1.0}, JOINT))["all tasks"]["layer.weight"]
    np.testing.assert_allclose(numbers(score), 4 * SIZE * SIZE * np.abs(numbers(model.layer.weight)), rtol=1e-12)


def test_flows_beyond_float32_are_finite():
    model = built(Chain, widths=(3, *[8] * 8, 2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1e5)
    scores = SynFlow()(scoring(model, {"a": 1.0}, JOINT))["all tasks"]
    assert float(scores["layers.0.weight"].sum()) > torch.finfo(torch.float32).max
    assert all(torch.isfinite(score).all() for score in scores.values())


@pytest.mark.parametrize("scope", [JOINT, PER_TASK])
def test_passes_are_those_that_are_made(scope, monkeypatch):
    given = scoring(built(Rich), WEIGHTS, scope)
    made = {"forward": 0, "backward": 0}
    given.model.register_forward_hook(lambda *_: made.update(forward=made["forward"] + 1))
    plain = torch.autograd.grad

    def counted(*arguments, **settings):
        made["backward"] += 1
        return plain(*arguments, **settings)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    SynFlow()(given)
    assert SynFlow().passes(len(given.voters)) == (made["forward"], made["backward"])


@dataclass(frozen=True)
class Watched:
    """SynFlow that notes, at each call, which weights of the model are not zero."""

    seen: list
    name: str = "watched"

    def passes(self, voters):
        return SynFlow().passes(voters)

    def __call__(self, scoring):
        self.seen.append({name: (weight != 0).clone() for name, weight in scoring.weights.items()})
        return SynFlow()(scoring)


def method(score, rounds=100):
    return Method(name="toy", score=score, schedule=once(), rounds=rounds)


def kept_in_each(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def test_no_layer_is_emptied_in_a_hundred_rounds_though_one_round_empties_some():
    model = built(Chain, widths=(3, 8, 64, 64, 64, 2))
    given = scoring(model, {"a": 1.0}, JOINT)
    total = sum(weight.numel() for weight in given.weights.values())
    before = {name: weight.detach().clone() for name, weight in given.weights.items()}
    many, one = (make_masks(method(SynFlow(), rounds), given, 0.99) for rounds in (100, 1))
    assert sum(kept_in_each(many).values()) == sum(kept_in_each(one).values()) == kept_count(total, 0.99)
    assert min(kept_in_each(one).values()) == 0
    assert min(kept_in_each(many).values()) >= 2
    assert all(torch.equal(weight, before[name]) for name, weight in given.weights.items())
    with torch.no_grad():
        for name, weight in given.weights.items():
            weight.mul_(many[name])
    # Something still flows from the input to the output, and all of it through every layer.
    sums = [float(score.sum()) for score in SynFlow()(given)["all tasks"].values()]
    assert sums[0] > 0
    np.testing.assert_allclose(sums, sums[0], rtol=1e-12)


def test_each_round_keeps_its_share_of_what_the_one_before_left():
    given = scoring(built(Toy, tasks="ab", width=12), WEIGHTS, JOINT)
    total = sum(weight.numel() for weight in given.weights.values())
    seen = []
    final = make_masks(method(Watched(seen)), given, 0.95)
    assert len(seen) == 100
    for number, (before, after) in enumerate(pairwise([*seen, final]), start=1):
        assert all((after[name] <= mask).all() for name, mask in before.items())
        kept = sum(int(mask.sum()) for mask in after.values())
        assert kept == kept_count(total, 1 - 0.05 ** (number / 100))


def test_masks_are_nested_as_sparsity_rises():
    given = scoring(built(Toy, tasks="ab", width=12), WEIGHTS, JOINT)
    masks = None
    for target in (0.5, 0.9, 0.99):
        after = make_masks(method(SynFlow(), 20), given, target, masks)
        assert masks is None or all((mask <= masks[name]).all() for name, mask in after.items())
        masks = after


def test_the_method_is_registered_with_a_hundred_rounds():
    registry = load_registry()
    found = registry.get("methods", "synflow")
    assert registry.get("scorers", "synflow") == SynFlow()
    assert (found.score, found.scope, found.rounds) == (SynFlow(), JOINT, 100)
    assert (found.start.score_on, found.start.train_from) == ("init", "init")
