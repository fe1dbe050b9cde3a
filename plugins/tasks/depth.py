"""Depth: how far the surface at every pixel is, in the unit of the dataset's labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlprune_bench import (
    Labels,
    Metric,
    PluginError,
    Protocol,
    Ratios,
    Task,
    absolute_error,
    absolute_loss,
    fraction_delta,
    hookimpl,
    relative_error,
)

LOG_CODE = "log code"
LOG_RANGE = math.log(65536)
NEAR_IS_LARGE = ("disparity/65535",)
"""The units in which what is near has larger values."""
PERCENTILES = (2, 98)
"""Those of the valid values between which a picture's colours change: windows and errors lie outside."""


def loss(prediction: Tensor, target: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Return the mean absolute error over the valid pixels, in the labels' unit."""
    return absolute_loss(prediction, target, mask)


def rescale_code(target: Tensor, scale: float) -> Tensor:
    """Return codes t = ln(1 + 512 z) / ln 65536 after the depths z, in metres, are divided by `scale`."""
    return torch.log1p(torch.expm1(target * LOG_RANGE) / scale) / LOG_RANGE


RESCALE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "m": lambda target, scale: target / scale,
    "disparity/65535": lambda target, scale: target * scale,
    LOG_CODE: rescale_code,
}


def rescale(target: Tensor, scale: float, labels: Labels) -> Tensor:
    """Return `target` after its image was enlarged by `scale`: what looks larger is nearer.

    Raises PluginError where it is not known how the labels' unit depends on distance.
    """
    if labels.unit not in RESCALE:
        known = ", ".join(f"'{unit}'" for unit in RESCALE)
        raise PluginError(f"Cannot rescale depth labels in '{labels.unit}'. Known units: {known}.")
    return RESCALE[labels.unit](target, scale)


def picture(target: NDArray[Any], mask: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Return a picture, uint8 [H, W, 3]: yellow for near over green to violet for far, black where unknown."""
    from matplotlib import colormaps

    low, high = np.percentile(target[0][mask], PERCENTILES) if mask.any() else (0.0, 0.0)
    share = (np.where(mask, target[0], low) - low) / (high - low or 1)
    colours = colormaps["viridis" if labels.unit in NEAR_IS_LARGE else "viridis_r"]
    return np.where(mask[..., None], colours(share, bytes=True)[..., :3], np.uint8(0))


def ratios(labels: Labels, protocol: Protocol) -> Ratios:
    """Return an empty state of errors and ratios, in the labels' unit."""
    return Ratios(protocol.average, protocol.negative_depth_hits)


def ratios_in_metres(labels: Labels, protocol: Protocol) -> Ratios:
    """Return an empty state of errors and ratios of log codes, in metres."""
    return Ratios(protocol.average, protocol.negative_depth_hits, decode)


def decode(codes: Tensor) -> Tensor:
    """Return the depths z, in metres, of codes t = ln(1 + 512 z) / ln 65536."""
    return torch.expm1(codes * LOG_RANGE) / 512


@hookimpl
def register_tasks(register: Callable[[Task], None]) -> None:
    """Register the task."""
    register(
        Task(
            name="depth",
            description="The depth of every pixel, in the unit of the dataset's labels.",
            loss=loss,
            channels=1,
            rescale=rescale,
            picture=picture,
        )
    )


@hookimpl
def register_metrics(register: Callable[[Metric], None]) -> None:
    """Register its metrics: in the labels' unit and, of log codes, also in metres."""
    for state, ending, unit, where, units in (
        (ratios, "", "", "", ()),
        (ratios_in_metres, "_metres", "m", " in metres", (LOG_CODE,)),
    ):
        metric = partial(Metric, task="depth", state=state, units=units)
        for kind, read, of in (("absolute", absolute_error, unit), ("relative", relative_error, "fraction")):
            register(
                metric(
                    name=f"{kind}_error{ending}",
                    description=f"mean {kind} error{where}",
                    read=read,
                    higher_is_better=False,
                    unit=of,
                )
            )
        for power in (1, 2, 3):
            register(
                metric(
                    name=f"delta_{power}{ending}",
                    description=f"fraction of pixels within a factor {1.25**power:.4g} of the truth{where}",
                    read=partial(fraction_delta, power=power),
                    higher_is_better=True,
                    unit="fraction",
                    high=1.0,
                )
            )
