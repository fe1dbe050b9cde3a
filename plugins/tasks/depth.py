"""Depth: how far the surface at every pixel is, in the unit of the dataset's labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
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

LOG_RANGE = math.log(65536)


def loss(prediction: Tensor, target: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Return the mean absolute error over the valid pixels, in the labels' unit."""
    return absolute_loss(prediction, target, mask)


def rescale_code(target: Tensor, scale: float) -> Tensor:
    """Return codes t = ln(1 + 512 z) / ln 65536 after the depths z, in metres, are divided by `scale`."""
    return torch.log1p(torch.expm1(target * LOG_RANGE) / scale) / LOG_RANGE


RESCALE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "m": lambda target, scale: target / scale,
    "disparity/65535": lambda target, scale: target * scale,
    "log code": rescale_code,
}


def rescale(target: Tensor, scale: float, labels: Labels) -> Tensor:
    """Return `target` after its image was enlarged by `scale`: what looks larger is nearer.

    Raises PluginError where it is not known how the labels' unit depends on distance.
    """
    if labels.unit not in RESCALE:
        known = ", ".join(f"'{unit}'" for unit in RESCALE)
        raise PluginError(f"Cannot rescale depth labels in '{labels.unit}'. Known units: {known}.")
    return RESCALE[labels.unit](target, scale)


def ratios(labels: Labels, protocol: Protocol) -> Ratios:
    """Return an empty state of errors and ratios."""
    return Ratios(protocol.average, protocol.negative_depth_hits)


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
        )
    )


@hookimpl
def register_metrics(register: Callable[[Metric], None]) -> None:
    """Register its metrics."""
    for kind, read, unit in (("absolute", absolute_error, ""), ("relative", relative_error, "fraction")):
        register(
            Metric(
                name=f"{kind}_error",
                task="depth",
                description=f"mean {kind} error",
                state=ratios,
                read=read,
                higher_is_better=False,
                unit=unit,
            )
        )
    for power in (1, 2, 3):
        register(
            Metric(
                name=f"delta_{power}",
                task="depth",
                description=f"fraction of pixels within a factor {1.25**power:.4g} of the truth",
                state=ratios,
                read=partial(fraction_delta, power=power),
                higher_is_better=True,
                unit="fraction",
                high=1.0,
            )
        )
