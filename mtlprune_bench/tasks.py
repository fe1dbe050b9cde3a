"""Tasks: what one head of a network predicts, how it is trained and which numbers measure it."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlprune_bench.data.formats import Array
from mtlprune_bench.errors import UsageError
from mtlprune_bench.protocols import Protocol


@dataclass(frozen=True)
class Labels:
    """What a dataset provides for one task.

    `classes` is the number of classes (0 where a task has none), `class_weights` the weight of each in the
    loss, `unit` the unit of the target's values where the dataset decides it. `negative_void` says that the files
    mark pixels without a class by a negative number, `always_mirrored` that under every protocol a mirrored
    image has its targets mirrored, too.
    """

    task: str
    classes: int = 0
    class_weights: tuple[float, ...] | None = None
    unit: str = ""
    negative_void: bool = False
    always_mirrored: bool = False


def unchanged(values: Tensor) -> Tensor:
    """Return `values`."""
    return values


def unscaled(target: Tensor, scale: float, labels: Labels) -> Tensor:
    """Return `target`: enlarging an image changes where its labels are, not what they say."""
    return target


def grey(target: Array, mask: Array, labels: Labels) -> Array:
    """Return the first channel of `target` from black to white over its valid range; the rest black."""
    values = target.reshape(-1, *mask.shape)[0].astype(np.float64)
    low, high = (values[mask].min(), values[mask].max()) if mask.any() else (0.0, 0.0)
    share = (np.where(mask, values, low) - low) / (high - low or 1)
    return np.repeat(np.rint(255 * share).astype(np.uint8)[..., None], 3, axis=-1)


@dataclass(frozen=True, kw_only=True)
class Task:
    """How one kind of prediction is trained.

    `loss(prediction [B, C, h, w], target [B, ..., h, w], mask [B, h, w], labels)` is a scalar, the mean over
    the valid pixels, and 0 where there are none. `channels` is the number of output channels, None for one a
    class. `finish` maps predictions to the target's space (unit vectors, say), each pixel by itself.
    `mirror(target)` is what a mirrored image does to values beyond moving them, `rescale(target, s, labels)` what
    enlarging it by `s` does. `picture(target [..., H, W], mask bool [H, W], labels)` shows one image's labels to a
    person, RGB uint8 [H, W, 3], black where they are not valid; equal values have equal colours.
    """

    name: str
    description: str
    loss: Callable[[Tensor, Tensor, Tensor, Labels], Tensor]
    channels: int | None = None
    finish: Callable[[Tensor], Tensor] = unchanged
    mirror: Callable[[Tensor], Tensor] = unchanged
    rescale: Callable[[Tensor, float, Labels], Tensor] = unscaled
    picture: Callable[[Array, Array, Labels], Array] = grey


class State(typing.Protocol):
    """What a metric adds up; a torchmetrics.Metric is one too.

    One whose `update` also takes `cells`, int64 [H, W], is spared enlarged predictions where each pixel shows one
    cell of a smaller one: it is then given [B, C, h, w], and which of its h * w cells that is.
    """

    def to(self, device: torch.device) -> State:
        """Return it on `device`."""
        ...

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add `prediction` [B, C, H, W] beside `target` [B, ..., H, W] where `mask` bool [B, H, W] is true."""
        ...


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number read off a streaming state, with its direction, unit and range.

    `state(labels, protocol)` makes a state that is updated batch after batch; metrics of one task with the same
    `state` share one.
    `read(state)` is the number. `unit` "" stands for the unit of the task's labels. It is measured for labels in
    one of `units`, for all labels where that is empty.
    """

    name: str
    task: str
    description: str
    state: Callable[[Labels, Protocol], State]
    read: Callable[[Any], Tensor]
    higher_is_better: bool
    unit: str = ""
    low: float = 0.0
    high: float = float("inf")
    units: tuple[str, ...] = ()

    def measures(self, labels: Labels) -> bool:
        """Return whether it is measured for `labels`."""
        return not self.units or labels.unit in self.units


@dataclass(frozen=True)
class Batch:
    """Images [B, 3, H, W], targets and masks [B, ..., H, W] of every task, all on one device."""

    images: Tensor
    targets: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """Return the batch on `device`; images are of type `dtype`, if given."""
        return Batch(
            _moved(self.images, device).to(dtype=dtype),
            {name: _moved(target, device) for name, target in self.targets.items()},
            {name: _moved(mask, device) for name, mask in self.masks.items()},
        )

    def parts(self, count: int) -> Iterator[Batch]:
        """Yield the batch in `count` pieces, of numbers of images that differ by one at most.

        Raises UsageError where it has fewer images than that.
        """
        if len(self.images) < count:
            raise UsageError(f"A batch of {len(self.images)} images cannot be cut into {count} parts.")
        for indices in torch.arange(len(self.images)).tensor_split(count):
            piece = slice(int(indices[0]), int(indices[-1]) + 1)
            yield Batch(
                self.images[piece],
                {name: target[piece] for name, target in self.targets.items()},
                {name: mask[piece] for name, mask in self.masks.items()},
            )


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`; what goes to a GPU does so while this process and the GPU work on."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        # Only from pinned memory does a copy wait for nothing.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Objective:
    """The tasks that a network learns together: their labels, loss weights and protocol, all by task name."""

    tasks: Mapping[str, Task]
    labels: Mapping[str, Labels]
    weights: Mapping[str, float]
    protocol: Protocol

    def channels(self) -> dict[str, int]:
        """Return the number of output channels of each task's head."""
        return {
            name: task.channels if task.channels is not None else self.labels[name].classes
            for name, task in self.tasks.items()
        }

    def losses(self, outputs: Mapping[str, Tensor], batch: Batch, temperature: float = 1.0) -> dict[str, Tensor]:
        """Return each task's loss, a scalar, at the resolution of its prediction; not weighted.

        The logits of tasks with classes are divided by `temperature` first.
        """
        losses = {}
        for name, task in self.tasks.items():
            prediction = outputs[name]
            if temperature != 1 and self.labels[name].classes:
                prediction = prediction / temperature
            target = shrink(batch.targets[name], prediction.shape[-2:], self.protocol.resize)
            mask = shrink(batch.masks[name], prediction.shape[-2:], self.protocol.resize)
            losses[name] = task.loss(prediction, target, mask, self.labels[name])
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted multitask loss (DiSparse, equation 3), a scalar."""
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()

    def predictions(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Return each task's prediction [B, C, H, W], resized to `size` and in its target's space."""
        return {
            name: task.finish(enlarge(outputs[name], size, self.protocol.resize))
            for name, task in self.tasks.items()
        }


def shrink(labels: Tensor, size: tuple[int, int] | torch.Size, resize: str) -> Tensor:
    """Return `labels` [..., H, W] read at the grid points of a `size` = (h, w) prediction.

    `resize` "aligned" puts the first and last points on the first and last pixels; "nearest" is what
    `torch.nn.functional.interpolate` does by default, row floor(i H / h).
    """
    rows, columns = (
        grid_points(labels.shape[dimension - 2], size[dimension], resize, labels.device) for dimension in (0, 1)
    )
    return labels[..., rows[:, None], columns]


def grid_points(length: int, count: int, resize: str, device: torch.device | None = None) -> Tensor:
    """Return which of `length` pixels the `count` points of a coarser grid fall on: int64 [count], on `device`."""
    points = torch.arange(count, device=device)  # made there, as a GPU is waited for where numbers are sent to it
    if resize == "nearest":
        return points * length // count
    return torch.div(points * (length - 1) * 2 + max(count - 1, 1), 2 * max(count - 1, 1), rounding_mode="floor")


def enlarge(prediction: Tensor, size: tuple[int, int], resize: str) -> Tensor:
    """Return `prediction` [B, C, h, w] at `size` = (H, W), by the interpolation that `shrink` undoes."""
    if resize == "nearest":
        return F.interpolate(prediction, size, mode="nearest")
    return F.interpolate(prediction, size, mode="bilinear", align_corners=True)
