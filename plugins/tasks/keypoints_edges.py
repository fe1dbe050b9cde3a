"""Keypoints and edges: how much of a corner, or of an edge, every pixel is, from -1 (not at all) to 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtlprune_bench import Deviation, Labels, Metric, Protocol, Task, absolute_loss, hookimpl, mean_value

DESCRIPTIONS = {
    "keypoints": "The strength of the corner at every pixel, in [-1, 1].",
    "edges": "The strength of the edge at every pixel, in [-1, 1].",
}


def loss(prediction: Tensor, target: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Return the mean absolute error over the valid pixels."""
    return absolute_loss(prediction, target, mask)


def picture(target: NDArray[Any], mask: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Return a picture, uint8 [H, W, 3]: black for -1 and where there is no label, over red to yellow for 1."""
    from matplotlib import colormaps

    strength = np.where(mask, (target[0] + 1) / 2, 0)
    coloured = colormaps["inferno"](strength, bytes=True)[..., :3]
    return np.where(mask[..., None], coloured, np.uint8(0))


def deviation(labels: Labels, protocol: Protocol) -> Deviation:
    """Return an empty mean absolute error."""
    return Deviation(average=protocol.average)


@hookimpl
def register_tasks(register: Callable[[Task], None]) -> None:
    """Register the tasks."""
    for name, description in DESCRIPTIONS.items():
        register(Task(name=name, description=description, loss=loss, channels=1, picture=picture))


@hookimpl
def register_metrics(register: Callable[[Metric], None]) -> None:
    """Register the metric of each."""
    for name in DESCRIPTIONS:
        register(
            Metric(
                name="error",
                task=name,
                description="mean absolute error",
                state=deviation,
                read=mean_value,
                higher_is_better=False,
                high=2.0,
            )
        )
