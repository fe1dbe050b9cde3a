"""The method keeps the contract of mtlprune-bench, and its scores are those of the paper."""

import pytest
import torch
from mtlprune_cosine import Cosine
from torch import nn

from mtlprune_bench import Scoring, Voter
from mtlprune_bench.testing import CHECKS, load_registry


@pytest.fixture(scope="module")
def registry():
    return load_registry()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_method_keeps_the_contract(check, registry, folder):
    check("cosprune", registry, folder, {"method": {"score": {"batches": 2}}})


def scores_of(gradients, weight, batches=1):
    """Return the scores of a layer of which each task's loss has these gradients."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    scoring = Scoring(
        model=layer,
        weights={"weight": layer.weight},
        voters=[Voter(task, {task: 1.0}, ("weight",)) for task in gradients],
        losses=lambda factor: {task: factor * (layer.weight * own).sum() for task, own in gradients.items()},
        batches=lambda count: [float(number) for number in range(1, count + 1)],
        seed=0,
    )
    return Cosine(batches)(scoring)


def test_a_filter_is_worth_the_cosine_of_its_gradients_whatever_their_size():
    one = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    two = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-9.0, 0.0], [4.0, 3.0]])
    scores = scores_of({"a": one, "b": 100 * two}, torch.ones(4, 2))
    expected = torch.tensor([1.0, 0.0, -1.0, 0.96], dtype=torch.float64)[:, None].expand(4, 2)
    torch.testing.assert_close(scores["a"]["weight"], expected)
    torch.testing.assert_close(scores["b"]["weight"], expected)


def test_three_tasks_are_three_pairs():
    one, two, three = (torch.tensor([row]) for row in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]))
    scores = scores_of({"a": one, "b": two, "c": three}, torch.ones(1, 2))
    assert scores["c"]["weight"][0, 0] == pytest.approx((1 + 0 + 0) / 3)


def test_a_filter_of_one_task_is_worth_its_taylor_score_and_more_than_any_agreement():
    weight, gradient = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[3.0, -1.0], [5.0, 2.0]])
    # Batches 1 and 2 have once and twice the gradient: means of (1 * 1) ** 2 and (2 * 1) ** 2, and of 4 and 16.
    scores = scores_of({"a": gradient}, weight, batches=2)
    assert scores["a"]["weight"][:, 0].tolist() == [1 + (1 + 4) / 2, 1 + (4 + 16) / 2]


def test_a_filter_without_a_gradient_neither_agrees_nor_disagrees():
    scores = scores_of({"a": torch.zeros(1, 2), "b": torch.ones(1, 2)}, torch.ones(1, 2))
    assert scores["a"]["weight"][0].tolist() == [0.0, 0.0]
