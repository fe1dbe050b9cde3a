"""A plugin for tests: a data set and a network so small that a run takes a second."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from torch import nn

from mtlprune_bench import (
    REWOUND,
    TRAINED,
    Dataset,
    Labels,
    Method,
    Model,
    Recipe,
    Sample,
    Splits,
    hookimpl,
    magnitude,
    once,
)

CLASSES = 5


@dataclass(frozen=True)
class Patches:
    """Images of 20 x 24 pixels: the class is the brightest colour of each half, the normal points to it."""

    count: int
    seed: int

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        classes = torch.randint(CLASSES, (2,), generator=generator).repeat_interleave(12).expand(20, 24)
        palette = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]])
        image = palette[classes].permute(2, 0, 1) // 2 + torch.randint(60, (3, 20, 24), generator=generator)
        normals = nn.functional.normalize(palette[classes].permute(2, 0, 1).float() + 1, dim=0)
        valid = torch.ones(20, 24, dtype=torch.bool)
        if os.environ.get("TOY_BROKEN"):
            normals = normals * float("nan")
        return Sample.of(
            image.to(torch.uint8),
            {"segmentation": classes.clone(), "normals": normals},
            {"segmentation": valid, "normals": valid},
        )


def open_patches(request):
    return Splits(
        train=Patches(12, 0),
        validation=Patches(3, 1),
        test=Patches(5, 2),
        origin="generated patches",
        fingerprint="patches-v1",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


class Network(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict(
            {task: nn.Sequential(nn.Dropout(0.1), nn.Conv2d(width, n, 1)) for task, n in channels.items()}
        )

    def forward(self, images):
        features = self.trunk(images)
        return {task: head(features) for task, head in self.heads.items()}


@dataclass(frozen=True)
class NetworkSettings:
    width: int = 16


@hookimpl
def register_models(register):
    register(
        Model(
            name="toy-net",
            description="two convolutions and a head a task",
            settings=NetworkSettings(),
            build=lambda channels, settings, argument: Network(channels, settings.width),
            scaled=lambda settings, factor: NetworkSettings(max(1, int(settings.width * factor))),
        )
    )


@hookimpl
def register_datasets(register):
    recipe = Recipe(
        steps=30, batch=4, crop=16, lr=1e-2, eval_batch=2, select_every=7, lr_decay_every=20, update_every=5
    )
    toy = Dataset(
        name="toy",
        description="coloured patches",
        labels=(Labels("segmentation", classes=CLASSES), Labels("normals")),
        loss_weights={"segmentation": 1.0, "normals": 5.0},
        model="toy-net",
        train=recipe,
        finetune=Recipe(steps=8, batch=4, crop=16, lr=1e-3, eval_batch=2, select_every=4),
        open=open_patches,
    )
    register(toy)
    register(replace(toy, name="toy-single", labels=toy.labels[:1], loss_weights={"segmentation": 1.0}))


@hookimpl
def register_methods(register):
    pruned = {"score": magnitude(), "schedule": once()}
    register(Method(name="toy-finetune", start=TRAINED, budget="finetune", **pruned))
    register(Method(name="toy-lottery", start=REWOUND, **pruned))
    register(Method(name="toy-late", score=magnitude(), schedule=once(step=10)))
