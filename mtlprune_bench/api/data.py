"""Data of your own: images and targets in any sequence become a dataset, named by what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlprune_bench.adapters import Dataset, Sample, Samples, Splits
from mtlprune_bench.errors import DataError, UsageError
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.tasks import Labels

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of RGB values in [0, 1]."""


def as_dataset(
    name: str,
    train: Sequence[Any],
    test: Sequence[Any],
    labels: Sequence[Labels],
    recipe: Recipe,
    *,
    validation: Sequence[Any] = (),
    loss_weights: Mapping[str, float] | None = None,
    finetune: Recipe | None = None,
    model: str = "",
    fingerprint: str = "",
    mean: tuple[float, float, float] = IMAGENET[0],
    std: tuple[float, float, float] = IMAGENET[1],
) -> Dataset:
    """Return the dataset `name` of splits that have a length and items: lists, or datasets of torch.

    An item is a `Sample`, or an image, RGB uint8 [3, H, W], with its targets by task, and perhaps masks by task,
    bool [H, W], true where a target is valid (default: everywhere). Targets of tasks with classes are [H, W],
    those of others [C, H, W]; tensors or arrays. `loss_weights` are 1 by default, `finetune` is `recipe`, `model`
    names the network of runs that name none. Items must be the same every time: chance belongs to the recipe.

    A run's name depends on `fingerprint`; by default it is computed from all items, which reads them once. Name
    the version of large data yourself. Raises UsageError where items change, and DataError for a wrong item.
    """
    tasks = {label.task: label for label in labels}
    splits = {"train": train, "validation": validation, "test": test}
    own = {part: _Items(items, tasks, f"{part} of {name}") for part, items in splits.items()}
    for part, items in own.items():
        if len(items) and _bytes(items[0]) != _bytes(items[0]):
            raise UsageError(
                f"Item 0 of {part} of {name} is another one each time. Leave augmentation to the recipe: crop, "
                "mirror, scale_low, scale_high."
            )
    digest = hashlib.sha256(f"{fingerprint or _content(own)} {mean} {std}".encode()).hexdigest()[:16]
    made = Splits(
        train=own["train"],
        validation=own["validation"],
        test=own["test"],
        # Tables keep apart what differs in its origin, as runs do by the fingerprint.
        origin=f"{len(train)} training and {len(test)} test images of one's own [{digest[:6]}]",
        fingerprint=f"{fingerprint} {digest}".strip(),
        mean=mean,
        std=std,
    )
    return Dataset(
        name=name,
        description=made.origin,
        labels=tuple(labels),
        loss_weights=dict(loss_weights or dict.fromkeys(tasks, 1.0)),
        model=model,
        train=recipe,
        finetune=finetune or recipe,
        open=lambda request: made,
    )


@dataclass(frozen=True)
class _Items:
    """A split of a user's items, read as samples."""

    items: Sequence[Any]
    labels: Mapping[str, Labels]
    where: str

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        if isinstance(item, Sample):
            return item
        if not isinstance(item, tuple | list) or len(item) not in (2, 3):
            raise DataError(f"Item {index} of {self.where} is no Sample, nor (image, targets) or (..., masks).")
        try:
            image = torch.as_tensor(item[0])
            masks = item[2] if len(item) == 3 else {}
            sample = Sample.of(
                image,
                {task: _target(item[1][task], label) for task, label in self.labels.items()},
                {task: _mask(masks, task, image) for task in self.labels},
            )
        except (TypeError, ValueError, LookupError) as error:
            raise DataError(
                f"Item {index} of {self.where} cannot be read as an image, with targets and masks by task: "
                f"{type(error).__name__}: {error}."
            ) from error
        self._check(index, sample)
        return sample

    def _check(self, index: int, sample: Sample) -> None:
        """Raise DataError where types or shapes are not as they should be."""
        image = sample.image
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise DataError(
                f"The image of item {index} of {self.where} is {image.dtype} {tuple(image.shape)}; it must be "
                "uint8 [3, H, W], RGB."
            )
        for task, label in self.labels.items():
            target, mask = sample.targets[task], sample.masks[task]
            dimensions = 2 if label.classes else 3
            if target.ndim != dimensions or not target.shape[-2:] == mask.shape == image.shape[1:]:
                raise DataError(
                    f"The target of {task}, of item {index} of {self.where}, is {tuple(target.shape)} with a mask "
                    f"{tuple(mask.shape)}; it must be [{'' if label.classes else 'C, '}H, W] for an image "
                    f"{tuple(image.shape)}."
                )


def _target(target: Any, label: Labels) -> Tensor:
    return torch.as_tensor(target).to(torch.int64 if label.classes else torch.float32)


def _mask(masks: Mapping[str, Any], task: str, image: Tensor) -> Tensor:
    whole = torch.ones(image.shape[-2:], dtype=torch.bool)
    return torch.as_tensor(masks[task]).bool() if task in masks else whole


def _bytes(sample: Sample) -> bytes:
    """Return a digest of all that is in a sample."""
    digest = hashlib.sha256()
    for tensor in (sample.image, *sample.targets.values(), *sample.masks.values()):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.digest()


def _content(splits: Mapping[str, Samples]) -> str:
    """Return a digest of all samples of all splits."""
    digest = hashlib.sha256()
    for name, samples in splits.items():
        digest.update(f"{name} {len(samples)}".encode())
        for index in range(len(samples)):
            digest.update(_bytes(samples[index]))
    return digest.hexdigest()
