"""Components: who uses which weight, found by autograd."""

import pytest
import torch
from torch import nn
from toys import Toy, Tree

from mtlprune_bench import UsageError
from mtlprune_bench.pruning.components import discover, prunable

IMAGES = torch.zeros(1, 3, 6, 6)


def test_trunk_and_heads():
    components = discover(Toy(["a", "b"]), IMAGES)
    assert components.by_name() == {
        "shared": ("trunk.0.weight", "trunk.3.weight"),
        "a": ("heads.a.1.weight",),
        "b": ("heads.b.1.weight",),
    }
    assert components.used_by("a") == ("trunk.0.weight", "trunk.3.weight", "heads.a.1.weight")


def test_a_weight_shared_by_two_of_three_tasks_is_a_component_of_its_own():
    components = discover(Tree(), IMAGES)
    assert components.users["branch.weight"] == ("a", "b")
    assert set(components.by_name()) == {"shared", "a+b", "a", "b", "c"}


def test_a_weight_that_no_task_reaches_is_left_out():
    model = Tree()
    assert "unused.weight" in prunable(model)
    assert "unused.weight" not in discover(model, IMAGES).users


def test_prunable_is_conv_and_linear_weights_each_once():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.ConvTranspose2d(2, 2, 1))
    model.append(model[2])
    assert list(prunable(model)) == ["0.weight", "2.weight", "3.weight"]


def test_discovery_leaves_no_trace():
    model = Toy(["a", "b"]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    discover(model, IMAGES)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_returns_no_dict_is_told_what_to_return():
    with pytest.raises(UsageError, match="dict with a tensor for each task"):
        discover(nn.Conv2d(3, 1, 1), IMAGES)
