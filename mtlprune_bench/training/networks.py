"""Networks: the dataset's multitask network, one such for each task alone, or a smaller one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from mtlprune_bench.adapters import Model
from mtlprune_bench.errors import UsageError
from mtlprune_bench.pruning.components import prunable

MULTITASK: Final = "multitask"
SINGLE_TASK: Final = "single-task"
SMALL: Final = "small"

STEPS = 30
"""Halvings of the interval in which the scale of a small network is searched."""


class SeparateNetworks(nn.Module):
    """One network a task, with nothing shared: images [B, 3, H, W] to each task's prediction [B, C, h, w]."""

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return each task's prediction, by its own network."""
        return {task: network(images)[task] for task, network in self.networks.items()}


def build_network(
    model: Model, channels: Mapping[str, int], settings: Any, kind: str = MULTITASK, sparsity: float = 0.0
) -> nn.Module:
    """Return an untrained network of `kind` for tasks with `channels` outputs; weights from torch's generator.

    A small one is the largest, of those that the model's adapter scales to, whose prunable weights are at most
    1 - `sparsity` of the whole network's. Raises UsageError where the model cannot be scaled so far.
    """
    if kind == SINGLE_TASK:
        networks = {task: model.build({task: count}, settings, model.argument) for task, count in channels.items()}
        return SeparateNetworks(networks)
    if kind == SMALL:
        settings = small_settings(model, channels, settings, sparsity)
    return model.build(channels, settings, model.argument)


def small_settings(model: Model, channels: Mapping[str, int], settings: Any, sparsity: float) -> Any:
    """Return the settings of the largest network with at most 1 - `sparsity` of the prunable weights.

    Raises UsageError where the model's adapter cannot scale it, or not so far.
    """
    if model.scaled is None:
        raise UsageError(f"Model '{model.name}' cannot be made smaller: its adapter gives no scaled settings.")
    allowed = (1 - sparsity) * count_weights(model, channels, settings)
    low, high = 0.0, 1.0
    if sparsity == 0:
        return settings
    for _ in range(STEPS):
        middle = (low + high) / 2
        fits = count_weights(model, channels, model.scaled(settings, middle)) <= allowed
        low, high = (middle, high) if fits else (low, middle)
    chosen = model.scaled(settings, low)
    if count_weights(model, channels, chosen) > allowed:
        raise UsageError(f"Model '{model.name}' cannot be made so small that a sparsity of {sparsity} is reached.")
    return chosen


def count_weights(model: Model, channels: Mapping[str, int], settings: Any) -> int:
    """Return the number of prunable weights of a model's network, which is built without memory for them."""
    with torch.device("meta"):
        network = model.build(channels, settings, model.argument)
    return sum(weight.numel() for weight in prunable(network).values())
