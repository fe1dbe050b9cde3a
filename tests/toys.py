"""Toys: networks, tasks and batches small enough to check by hand."""

from __future__ import annotations

import math

import torch
from torch import nn

from mtlprune_bench import STANDARD, Labels, Task
from mtlprune_bench.pruning.components import discover, prunable
from mtlprune_bench.pruning.prune import voters_of
from mtlprune_bench.pruning.scorers import Scoring
from mtlprune_bench.tasks import Batch, Objective
from mtlprune_bench.training.train import Training, Watch


def squared(prediction, target, mask, labels):
    return ((prediction - target) ** 2 * mask[:, None]).mean()


def objective(weights):
    """Return an objective of regression tasks with these loss weights."""
    tasks = {name: Task(name=name, description="toy", loss=squared, channels=2) for name in weights}
    return Objective(tasks, {name: Labels(name) for name in weights}, weights, STANDARD)


class Toy(nn.Module):
    """A trunk of two convolutions with batch norm, and a head with dropout for each task."""

    def __init__(self, tasks, width=4):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3)
        )
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(nn.Dropout(0.3), nn.Conv2d(width, 2, 1)) for task in tasks}
        )

    def forward(self, images):
        features = self.trunk(images)
        return {task: head(features) for task, head in self.heads.items()}


class Tree(nn.Module):
    """Three tasks: all share `root`, tasks a and b share `branch`, nobody uses `unused`."""

    def __init__(self):
        super().__init__()
        self.root = nn.Conv2d(3, 4, 1)
        self.branch = nn.Conv2d(4, 4, 1)
        self.heads = nn.ModuleDict({task: nn.Linear(4, 2) for task in "abc"})
        self.unused = nn.Linear(2, 2)

    def forward(self, images):
        root = torch.tanh(self.root(images))
        branch = torch.tanh(self.branch(root))
        inputs = {"a": branch, "b": branch, "c": root}
        return {task: self.heads[task](inputs[task].movedim(1, -1)).movedim(-1, 1) for task in "abc"}


def batches(tasks, count=3, size=6, seed=0):
    """Return batches of random images and targets."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return [
        Batch(
            draw(2, 3, size, size),
            {task: draw(2, 2, size, size) for task in sorted(tasks)},
            {task: torch.ones(2, size, size, dtype=torch.bool) for task in tasks},
        )
        for _ in range(count)
    ]


def scoring(model, weights, scope, seed=0):
    """Return a Scoring of `model` under an objective with these loss weights."""
    goal = objective(weights)
    components = discover(model, torch.zeros(1, 3, 6, 6))
    used = {name: weight for name, weight in prunable(model).items() if name in components.users}
    data = batches(weights)
    return Scoring(
        model=model,
        weights=used,
        voters=voters_of(scope, weights, components),
        losses=lambda batch: goal.losses(model(batch.images), batch),
        batches=lambda count: data[:count],
        seed=seed,
    )


def training(model, folder, weights, **changes):
    """Return a Training of `model` on three batches over and over, which `changes` has to give a recipe."""
    data = batches(weights)
    return Training(
        **{
            "model": model,
            "objective": objective(weights),
            "batches": lambda step: (data[number % 3] for number in range(step, 10_000)),
            "select": None,
            "folder": folder,
            "seed": 5,
            "checkpoint_seconds": math.inf,
            "watch": Watch(lambda step, losses: None, lambda step, before, after: None),
            **changes,
        }
    )
