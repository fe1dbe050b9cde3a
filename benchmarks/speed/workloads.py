"""Workloads: networks, made-up batches, and what the engine's scorers look at, as in a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtlprune_bench.adapters import Model
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.protocols import DISPARSE, Protocol
from mtlprune_bench.pruning.components import Components, discover, prunable
from mtlprune_bench.pruning.method import Method
from mtlprune_bench.pruning.prune import voters_of
from mtlprune_bench.pruning.scorers import Scoring
from mtlprune_bench.tasks import Batch, Labels, Objective

LABELS = (
    Labels("segmentation", classes=40),
    Labels("normals"),
    Labels("depth", unit="m"),
    Labels("keypoints"),
    Labels("edges"),
)
SMALL, LARGE = "deeplab-small", "deeplab-resnet34"


def objective_of(tasks: int, protocol: Protocol = DISPARSE) -> Objective:
    """Return the objective of the first so many tasks."""
    registry = load_registry()
    labels = {label.task: label for label in LABELS[:tasks]}
    return Objective(
        tasks={name: registry.get("tasks", name) for name in labels},
        labels=labels,
        weights=dict.fromkeys(labels, 1.0),
        protocol=protocol,
    )


def made_up(tasks: int, size: tuple[int, int], batch: int, device: torch.device, seed: int = 0) -> Batch:
    """Return `batch` random images of `size` = (H, W) with labels for the first so many tasks, all valid."""
    generator = torch.Generator().manual_seed(seed)
    targets = {}
    for label in LABELS[:tasks]:
        shape = (batch, 3 if label.task == "normals" else 1, *size)
        values = torch.rand(shape, generator=generator) - (0.5 if label.task == "normals" else 0)
        targets[label.task] = (values[:, 0] * label.classes).long() if label.classes else values
    masks = {task: torch.ones(batch, *size, dtype=torch.bool) for task in targets}
    return Batch(torch.randn(batch, 3, *size, generator=generator), targets, masks).to(device)


@dataclass(frozen=True)
class Workload:
    """A network for the first so many `tasks`, and batches of random images of `pixels` squared."""

    network: str
    tasks: int
    pixels: int
    batch: int
    device: torch.device

    def __reduce__(self) -> tuple[type[Workload], tuple[Any, ...]]:
        """Leave what is made when it is first asked for behind, where another process gets it."""
        return Workload, (self.network, self.tasks, self.pixels, self.batch, self.device)

    def build(self) -> nn.Module:
        """Return the network, the same each time."""
        torch.manual_seed(0)
        return self._built().to(self.device)

    def _built(self) -> nn.Module:
        model = self.model
        built: nn.Module = model.build(self.objective.channels(), model.settings, model.argument)
        return built

    @cached_property
    def model(self) -> Model:
        """Return the network's adapter."""
        found: Model = load_registry().get("models", self.network)
        return found

    @cached_property
    def objective(self) -> Objective:
        """Return what the network learns."""
        return objective_of(self.tasks)

    @cached_property
    def batches(self) -> list[Batch]:
        """Return four batches."""
        size = (self.pixels, self.pixels)
        return [made_up(self.tasks, size, self.batch, self.device, seed) for seed in range(4)]

    @cached_property
    def outline(self) -> nn.Module:
        """Return the network without memory for its weights."""
        with torch.device("meta"):
            return self._built()

    @cached_property
    def weights(self) -> int:
        """Return the number of prunable weights."""
        return sum(weight.numel() for weight in prunable(self.outline).values())

    def words(self) -> str:
        """Return its size in words."""
        return f"{self.network}, {self.tasks} tasks, {self.pixels} px, batch {self.batch}"

    def needs(self) -> float:
        """Return about how many bytes the straightforward side takes at most, results of both sides with it."""
        cells = self.batch * self.tasks * self.pixels**2
        return 4.0 * (self.weights * (8 + 2 * self.tasks) + 1000 * cells)

    def flops(self) -> float:
        """Return how many additions and multiplications a forward pass and each task's backward pass take."""
        whole, trunk = self.forward_flops(), counted(self.outline.trunk, self._images())
        # A backward pass takes twice as much as a forward pass, of a task's own head and of the trunk.
        return (1 + 2 * self.tasks) * trunk + 3 * (whole - trunk)

    def forward_flops(self) -> float:
        """Return how many additions and multiplications a forward pass takes."""
        return counted(self.outline, self._images())

    def _images(self) -> Tensor:
        return torch.zeros(self.batch, 3, self.pixels, self.pixels, device="meta")

    @cached_property
    def components(self) -> Components:
        """Return which task uses which weight."""
        size = (self.pixels, self.pixels)
        return discover(self.outline, torch.zeros(1, 3, *size, device="meta"))

    def scoring(self, model: nn.Module, method: Method) -> Scoring:
        """Return what the scorers of `method` may look at, as in a run."""
        return Scoring(
            model=model,
            weights={name: weight for name, weight in prunable(model).items() if name in self.components.users},
            voters=voters_of(method.scope, self.objective.weights, self.components),
            losses=lambda batch: self.objective.losses(model(batch.images), batch),
            batches=lambda count: itertools.islice(itertools.cycle(self.batches), count),
            seed=0,
            current=self.batches[0],
        )

    def loss(self, outputs: Mapping[str, Tensor], batch: Any, task: str) -> Tensor:
        """Return one task's loss, as the straightforward implementation asks for it."""
        own = {task: self.objective.tasks[task]}
        alone = Objective(tasks=own, labels=self.objective.labels, weights={}, protocol=self.objective.protocol)
        return alone.losses(outputs, batch)[task]

    def total(self, outputs: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Return the weighted loss of all tasks."""
        return self.objective.total(self.objective.losses(outputs, batch))


def counted(function: Callable[[Tensor], Any], images: Tensor) -> float:
    """Return how many additions and multiplications `function` takes of images without memory."""
    with FlopCounterMode(display=False) as counter:
        function(images)
    return float(counter.get_total_flops())
