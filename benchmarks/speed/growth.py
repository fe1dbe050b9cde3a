"""Growth: what each cost becomes as weights, tasks, pixels and images grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.speed.measure import Asked, Case, Ceilings, Result, measure_alone
from benchmarks.speed.pruning import masks, scoring
from benchmarks.speed.training import SIZE, measuring
from benchmarks.speed.workloads import SMALL, Workload

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Series:
    """One cost at several sizes: `places` are the sizes, in `words`, and `case(place)` is what is measured."""

    title: str
    words: str
    places: Sequence[float]
    case: Callable[[float], Case]


def backbone(name: str) -> Case:
    """Return the case of masks for a network on a backbone of timm."""
    work = Workload(f"timm:{name}", 2, 32, 2, CPU)
    return Case(name="masks", size=work.words(), prepare=partial(masks, work), needs=work.needs(), targets={})


def of_tasks(tasks: float) -> Case:
    """Return the case of scoring for so many tasks."""
    return scored(Workload(SMALL, int(tasks), 64, 4, CPU))


def of_pixels(pixels: float) -> Case:
    """Return the case of scoring images of so many pixels a side."""
    return scored(Workload(SMALL, 2, int(pixels), 4, CPU))


def scored(work: Workload) -> Case:
    """Return the case of scoring one batch."""
    return Case(
        name="scoring", size=work.words(), prepare=partial(scoring, work, 1), needs=work.needs(), targets={}
    )


def of_images(images: float) -> Case:
    """Return the case of the memory of an evaluation of so many images."""
    return replace(measuring(int(images), SIZE), unit="MB", limit=0.0)


def of_height(height: float) -> Case:
    """Return the case of an evaluation of images of so many pixels a height."""
    return measuring(4, (int(height), int(height) * 4 // 3))


BACKBONES = {2_500_000: "lcnet_035", 7_200_000: "resnet10t", 23_600_000: "resnet34"}


def series() -> list[Series]:
    """Return all that is drawn."""
    weights = {Workload(f"timm:{name}", 2, 32, 2, CPU).weights: name for name in BACKBONES.values()}
    return [
        Series("masks", "weights", sorted(weights), lambda count: backbone(weights[int(count)])),
        Series("scoring", "tasks", (1, 2, 3, 4, 5), of_tasks),
        Series("scoring, 2 tasks", "pixels a side", (32, 64, 96, 128), of_pixels),
        Series("evaluation, 4 images", "pixels a height", (120, 240, 480), of_height),
        Series("memory of evaluation", "images", (8, 32), of_images),
    ]


def grow(one: Series, device: torch.device, asked: Asked, ceilings: Ceilings) -> list[Result]:
    """Return what was measured at each size of a series."""
    return [measure_alone(one.case(place), device, asked, ceilings) for place in one.places]
