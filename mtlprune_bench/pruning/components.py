"""Components: which tasks use which weight. Discovered from the network, never declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mtlprune_bench.errors import UsageError


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the prunable weights by name: `weight` of every convolution and linear layer, each once."""
    owners = {id(layer.weight) for layer in model.modules() if isinstance(layer, _ConvNd | nn.Linear)}
    return {name: weight for name, weight in model.named_parameters() if id(weight) in owners}


@dataclass(frozen=True)
class Components:
    """The tasks that use each prunable weight, by weight name, in the order of the model's outputs."""

    users: Mapping[str, tuple[str, ...]]
    tasks: tuple[str, ...]

    def used_by(self, task: str) -> tuple[str, ...]:
        """Return the names of the weights that `task` uses: its share of the trunk and its own head."""
        return tuple(name for name, users in self.users.items() if task in users)

    def by_name(self) -> dict[str, tuple[str, ...]]:
        """Return the weights of each component: `shared` (used by all tasks), "a+b" (some), a task's own."""
        components: dict[str, list[str]] = {}
        for name, users in self.users.items():
            whole = len(users) == len(self.tasks) > 1
            components.setdefault("shared" if whole else "+".join(users), []).append(name)
        return {name: tuple(weights) for name, weights in components.items()}


def discover(model: nn.Module, images: Tensor) -> Components:
    """Return which task's output reaches which prunable weight, by autograd on `images` [B, 3, H, W].

    Weights that no task reaches (a layer left over in a backbone) are in no component: nothing trains or
    scores them. The model is left as it was. Raises UsageError where its output is not a dict of tensors
    that depend on its weights.
    """
    return discover_by(model, lambda: model(images), prunable(model))


def discover_by(model: nn.Module, forward: Callable[[], Any], weights: Mapping[str, Tensor]) -> Components:
    """Return which of the tensors by task that `forward()` makes, by `model` in eval mode, reaches which weight.

    As `discover` does, with outputs, losses or any other tensors of the tasks.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            outputs = forward()
            reached = _reached(outputs, weights)
    finally:
        for module, flag in training.items():
            module.training = flag
    users = {
        name: tuple(task for task in outputs if name in reached[task])
        for name in weights
        if any(name in names for names in reached.values())
    }
    return Components(users, tuple(outputs))


def _reached(outputs: object, weights: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """Return the names of the weights that each output depends on."""
    if not isinstance(outputs, dict) or not all(isinstance(value, Tensor) for value in outputs.values()):
        raise UsageError(
            f"The model returned {type(outputs).__name__}; it must return a dict with a tensor for each task."
        )
    reached = {}
    for task, output in outputs.items():
        if not output.requires_grad:
            raise UsageError(f"The model's output for task '{task}' does not depend on its weights.")
        gradients = torch.autograd.grad(output.sum(), list(weights.values()), retain_graph=True, allow_unused=True)
        reached[task] = {name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None}
    return reached
