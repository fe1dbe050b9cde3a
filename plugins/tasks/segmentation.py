"""Semantic segmentation: the class of every pixel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlprune_bench import (
    Confusion,
    CrossEntropy,
    Labels,
    Metric,
    Protocol,
    Task,
    cross_entropy,
    hookimpl,
    mean_iou,
    mean_value,
    weighted_mean,
)

GOLDEN_ANGLE = np.pi * (3 - 5**0.5)
"""The turn, in radians, after which any number of hues in a row lie evenly around the circle."""
LIGHTNESS = (0.66, 0.86, 0.44, 0.77, 0.55)
"""In Oklab, of one class after the other and then again: neighbours in number differ in it most, and the golden
angle brings no two hues together whose numbers differ by a multiple of five."""
CHROMA = 0.14
# Oklab to the cube roots of cone responses, and these to linear sRGB: https://bottosson.github.io/posts/oklab/
TO_CONES = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@functools.cache
def palette(classes: int) -> NDArray[np.uint8]:
    """Return a colour of each class, RGB uint8 [classes, 3]; how many there are changes none."""
    number = np.arange(classes)
    hue = number * GOLDEN_ANGLE
    lightness = np.array(LIGHTNESS)[number % len(LIGHTNESS)]
    lab = np.stack([lightness, CHROMA * np.cos(hue), CHROMA * np.sin(hue)], axis=-1)
    linear = ((lab @ TO_CONES.T) ** 3 @ TO_RGB.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    colours: NDArray[np.uint8] = np.rint(255 * encoded).astype(np.uint8)
    return colours


def picture(target: NDArray[Any], mask: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Return a picture, uint8 [H, W, 3]: a fixed colour for each class, black for pixels without one."""
    coloured = palette(labels.classes)[np.where(mask, target, 0)]
    return np.where(mask[..., None], coloured, np.uint8(0))


def loss(prediction: Tensor, target: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Return the mean cross-entropy over the valid pixels, weighted by class if the labels have weights."""
    weights = labels.class_weights
    class_weights = None if weights is None else weights_on(prediction.device, weights)
    return weighted_mean(*cross_entropy(prediction, target, mask, class_weights))


@functools.lru_cache(maxsize=8)
def weights_on(device: torch.device, weights: tuple[float, ...]) -> Tensor:
    """Return `weights` as a tensor on `device`, to which they travel once: a GPU is waited for each time."""
    with torch.inference_mode(False):
        return torch.tensor(weights, device=device)


def confusion(labels: Labels, protocol: Protocol) -> Confusion:
    """Return an empty confusion matrix."""
    return Confusion(
        labels.classes,
        iou_over=protocol.iou_over,
        count_void=protocol.count_void and labels.negative_void,
        average=protocol.average,
    )


def entropy(labels: Labels, protocol: Protocol) -> CrossEntropy:
    """Return an empty mean cross-entropy."""
    return CrossEntropy(labels.class_weights, protocol.average)


@hookimpl
def register_tasks(register: Callable[[Task], None]) -> None:
    """Register the task."""
    register(Task(name="segmentation", description="The class of every pixel.", loss=loss, picture=picture))


@hookimpl
def register_metrics(register: Callable[[Metric], None]) -> None:
    """Register its metrics."""
    register(
        Metric(
            name="mean_iou",
            task="segmentation",
            description="intersection over union, averaged over classes",
            state=confusion,
            read=mean_iou,
            higher_is_better=True,
            unit="fraction",
            high=1.0,
        )
    )
    register(
        Metric(
            name="pixel_accuracy",
            task="segmentation",
            description="fraction of pixels in the predicted class",
            state=confusion,
            read=mean_value,
            higher_is_better=True,
            unit="fraction",
            high=1.0,
        )
    )
    register(
        Metric(
            name="error",
            task="segmentation",
            description="mean cross-entropy, weighted by class if the labels have weights",
            state=entropy,
            read=mean_value,
            higher_is_better=False,
            unit="nat",
        )
    )
