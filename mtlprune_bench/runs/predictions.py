"""Predictions as pictures: what a network sees in an image, beside the truth and in the same colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mtlprune_bench.adapters import Sample
from mtlprune_bench.data.formats import Array
from mtlprune_bench.errors import UsageError
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.tasks import Labels, Task
from mtlprune_bench.training.batches import evaluation_batches

SHOWN = 3
"""The test images that observers are shown, the first ones."""
GREY = 128
"""The shade of what has no picture: pixels without a label, and the place below an image."""


@dataclass(frozen=True)
class Chosen:
    """Some of the samples of a split, by number."""

    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


@dataclass(frozen=True)
class Scene:
    """A test image, uint8 [H, W, 3], and pictures of each task's truth and of what each network predicts."""

    number: int
    image: Array
    truths: Mapping[str, Array]
    predictions: Mapping[str, Sequence[Array]]


def scenes(experiment: Experiment, networks: Sequence[nn.Module], numbers: Sequence[int]) -> Iterator[Scene]:
    """Yield the test images `numbers` with the predictions of `networks`, which have the experiment's tasks.

    The networks are left as they were. Raises UsageError for a number that the test set does not have.
    """
    objective, test = experiment.objective, experiment.opened.splits.test
    for number in numbers:
        if not 0 <= number < len(test):
            raise UsageError(f"There is no test image {number}; there are {len(test)}, from 0.")
        sample = test[number]
        outputs = [predict(network, experiment, sample) for network in networks]
        pictures = {
            name: shown(task, objective.labels[name], sample, [output[name] for output in outputs])
            for name, task in objective.tasks.items()
        }
        image = sample.image.numpy().transpose(1, 2, 0)
        truths = {name: several[0] for name, several in pictures.items()}
        yield Scene(number, image, truths, {name: several[1:] for name, several in pictures.items()})


def predict(network: nn.Module, experiment: Experiment, sample: Sample) -> dict[str, Array]:
    """Return each task's prediction [C, H, W] for one image, in the space of its target."""
    place = next(network.parameters())
    (batch,) = evaluation_batches(Chosen([sample]), experiment.opened.splits, experiment.objective, 1)
    training = network.training
    network.eval()
    with torch.inference_mode():
        outputs = network(batch.images.to(place.device, place.dtype))
        height, width = batch.images.shape[-2:]
        predictions = experiment.objective.predictions(outputs, (height, width))
    network.train(training)
    return {name: prediction[0].float().cpu().numpy() for name, prediction in predictions.items()}


def shown(task: Task, labels: Labels, sample: Sample, predictions: Sequence[Array]) -> list[Array]:
    """Return pictures, uint8 [H, W, 3], of a task's truth and of `predictions` [C, H, W], grey where not known.

    They are made as one picture, side by side, so that equal values have equal colours. A single channel keeps
    to the range of the truth, from which its colours are taken.
    """
    target, mask = sample.targets[task.name].numpy(), sample.masks[task.name].numpy()
    values, masks = [target], [mask]
    for prediction in predictions:
        value = prediction.argmax(axis=0) if labels.classes else prediction
        if not labels.classes and len(prediction) == 1 and mask.any():
            known = target.reshape(mask.shape)[mask]
            value = value.clip(known.min(), known.max())
        values.append(value.reshape(target.shape).astype(target.dtype))
        masks.append(np.ones_like(mask))
    valid = np.concatenate(masks, axis=-1)
    whole = task.picture(np.concatenate(values, axis=-1), valid, labels)
    return np.split(np.where(valid[..., None], whole, np.uint8(GREY)), len(values), axis=1)


def sheets(experiment: Experiment, network: nn.Module) -> dict[str, Array]:
    """Return pictures of the first test images by name, uint8 [H, W, 3]: image and truths above predictions."""
    count = min(SHOWN, len(experiment.opened.splits.test))
    found = {}
    for scene in scenes(experiment, [network], range(count)):
        below = np.full_like(scene.image, GREY)
        top = np.concatenate([scene.image, *scene.truths.values()], axis=1)
        bottom = np.concatenate([below, *(several[0] for several in scene.predictions.values())], axis=1)
        found[f"test-{scene.number}"] = np.concatenate([top, bottom], axis=0)
    return found
