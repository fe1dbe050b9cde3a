"""Surface normals: which way the surface at every pixel faces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mtlprune_bench import (
    Angles,
    Labels,
    Metric,
    Protocol,
    Task,
    fraction_within,
    hookimpl,
    mean_value,
    median_angle,
    weighted_mean,
)


def unit(vectors: Tensor) -> Tensor:
    """Return `vectors` [B, 3, H, W] at length 1; those near 0 stay short, for finite gradients."""
    return F.normalize(vectors, dim=1, eps=1e-6)


def loss(prediction: Tensor, target: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Return the mean of 1 - cosine of the angle to the target over the valid pixels, in [0, 2]."""
    truth = unit(target.masked_fill(~mask[:, None], 0))
    return weighted_mean(1 - (unit(prediction) * truth).sum(1), mask)


def mirror(target: Tensor) -> Tensor:
    """Return normals [..., 3, H, W] of a mirrored image: x changes sign."""
    return torch.cat([-target[..., :1, :, :], target[..., 1:, :, :]], dim=-3)


def picture(target: NDArray[Any], mask: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Return a picture, uint8 [H, W, 3]: the more a surface faces right, up and the viewer, the redder, greener
    and bluer it is; grey across, black where there is no normal.
    """
    right, down, forward = np.where(mask, target, 0)
    shares = (np.stack([right, -down, -forward], axis=-1) + 1) / 2
    return np.where(mask[..., None], np.rint(255 * shares.clip(0, 1)), 0).astype(np.uint8)


def angles(labels: Labels, protocol: Protocol) -> Angles:
    """Return an empty state of angles, which are pooled over pixels under every protocol."""
    return Angles()


@hookimpl
def register_tasks(register: Callable[[Task], None]) -> None:
    """Register the task."""
    register(
        Task(
            name="normals",
            description="The surface normal at every pixel, in the camera frame.",
            loss=loss,
            channels=3,
            finish=unit,
            mirror=mirror,
            picture=picture,
        )
    )


@hookimpl
def register_metrics(register: Callable[[Metric], None]) -> None:
    """Register its metrics."""
    for statistic, read in (("mean", mean_value), ("median", median_angle)):
        register(
            Metric(
                name=f"{statistic}_angle",
                task="normals",
                description=f"{statistic} angle to the true normal",
                state=angles,
                read=read,
                higher_is_better=False,
                unit="degree",
                high=180.0,
            )
        )
    for degrees in (11.25, 22.5, 30):
        register(
            Metric(
                name=f"within_{degrees}",
                task="normals",
                description=f"fraction of pixels at most {degrees} degrees off",
                state=angles,
                read=partial(fraction_within, degrees=degrees),
                higher_is_better=True,
                unit="fraction",
                high=1.0,
            )
        )
