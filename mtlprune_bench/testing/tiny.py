"""The tiny dataset of the contract, its network and its tasks: a run takes a fraction of a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlprune_bench.adapters import Dataset, Model, Sample, Splits
from mtlprune_bench.host.registry import BUILT_IN, Registry
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Labels, Task

TINY = "contract"
"""The name of the tiny dataset, and of its model."""


@dataclass(frozen=True)
class Blocks:
    """Images of 20 x 24 pixels in blocks of 4 x 4: which colour is strongest, the lightness, and two contrasts."""

    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(derive(self.seed, index))
        blocks = torch.randint(256, (3, 5, 6), generator=generator, dtype=torch.uint8)
        image = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)
        light = image.float() / 255
        targets = {"colour": image.argmax(0), "light": light.mean(0, True), "contrast": light[:2] - light[1:]}
        return Sample.of(image, targets, {task: torch.ones(20, 24, dtype=torch.bool) for task in targets})


@dataclass(frozen=True)
class TinySettings:
    """Settings of the tiny network."""

    width: int = field(default=9, metadata={"help": "channels of a layer"})


class TinyNetwork(nn.Module):
    """All tasks share a trunk, those after the first a branch too; no task uses the last layer."""

    def __init__(self, channels: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(nn.Dropout(0.1), nn.Conv2d(width, count, 1)) for task, count in channels.items()}
        )
        self.unused = nn.Linear(width, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images [B, 3, H, W] to a prediction [B, C, H / 2, W / 2] for each task."""
        trunk = self.trunk(images)
        branch = self.branch(trunk)
        return {task: head(branch if index else trunk) for index, (task, head) in enumerate(self.heads.items())}


def tiny_loss(prediction: Tensor, target: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Return the mean cross-entropy of a task with classes, else the mean squared error, over valid pixels."""
    if labels.classes:
        errors = F.cross_entropy(prediction, target, reduction="none")
    else:
        errors = (prediction - target).square().mean(1)
    return (errors * mask).sum() / mask.sum().clamp(min=1)


def register_tiny(registry: Registry) -> None:
    """Register the tiny dataset, its model and its tasks, unless they are there."""
    if ("datasets", TINY) in registry.entries:
        return
    labels = (Labels("colour", classes=3), Labels("light"), Labels("contrast"))
    splits = Splits(
        train=Blocks(6, 0),
        validation=Blocks(2, 1),
        test=Blocks(2, 2),
        origin="generated blocks",
        fingerprint="blocks-1",
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
    )
    recipe = Recipe(steps=8, batch=3, crop=16, lr=1e-2, eval_batch=6, lr_decay_every=6, update_every=2)
    dataset = Dataset(
        name=TINY,
        description="coloured blocks",
        labels=labels,
        loss_weights={"colour": 1.0, "light": 2.0, "contrast": 3.0},
        model=TINY,
        train=recipe,
        finetune=dataclasses.replace(recipe, steps=4, lr=1e-3, update_every=1),
        open=lambda request: splits,
    )
    model = Model(
        name=TINY,
        description="two convolutions, and a head for each task",
        settings=TinySettings(),
        build=lambda channels, settings, argument: TinyNetwork(channels, settings.width),
        scaled=lambda settings, factor: TinySettings(max(1, int(settings.width * factor))),
    )
    tasks = [
        Task(name=label.task, description="tiny", loss=tiny_loss, channels=channels)
        for label, channels in zip(labels, (None, 1, 2), strict=True)
    ]
    found: list[tuple[str, Any]] = [("datasets", dataset), ("models", model), *(("tasks", task) for task in tasks)]
    for kind, value in found:
        registry.add(kind, value, __name__, BUILT_IN, None)
