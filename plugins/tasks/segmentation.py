"""Semantic segmentation: the class of every pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
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


def loss(prediction: Tensor, target: Tensor, mask: Tensor, labels: Labels) -> Tensor:
    """Return the mean cross-entropy over the valid pixels, weighted by class if the labels have weights."""
    weights = labels.class_weights
    class_weights = None if weights is None else torch.tensor(weights, device=prediction.device)
    return weighted_mean(*cross_entropy(prediction, target, mask, class_weights))


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
    register(Task(name="segmentation", description="The class of every pixel.", loss=loss))


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
