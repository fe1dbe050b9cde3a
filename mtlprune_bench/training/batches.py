"""Batches: an endless training stream in which every batch is a pure function of the seed and the step."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mtlprune_bench.adapters import Labelling, Samples, Splits
from mtlprune_bench.data.formats import as_tensor
from mtlprune_bench.errors import DataError, MtlbenchError
from mtlprune_bench.protocols import Protocol
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Batch, Objective
from mtlprune_bench.training.augment import Warp, draw_warp, inside, warp_image, warp_labels

BGR = [2, 1, 0]


def network_input(pixels: Tensor, splits: Splits, protocol: Protocol) -> Tensor:
    """Return RGB `pixels` [..., 3, H, W] in [0, 255] as the protocol feeds them to a network, float32."""
    mean = torch.tensor(splits.mean, device=pixels.device)[:, None, None]
    if protocol.pixels == "bgr255":
        return (pixels.float() - 255 * mean)[..., BGR, :, :]
    # A GPU divides by a tensor; by a number it would multiply by the inverse, which rounds differently.
    largest = torch.tensor(255.0, device=pixels.device) if pixels.is_cuda else 255
    # One copy, changed in place: a new one for each operation takes several times as long.
    return (pixels / largest).sub_(mean).div_(torch.tensor(splits.std, device=pixels.device)[:, None, None])


def padding_colour(splits: Splits, protocol: Protocol) -> Tensor:
    """Return the RGB colour [3], in [0, 255], with which images are padded."""
    return torch.zeros(3) if protocol.pad == "black" else 255 * torch.tensor(splits.mean)


@dataclass(frozen=True)
class Stream:
    """The training batches of one recipe and seed.

    Samples come in epochs, each its own permutation, one after the other without a gap, so that a split of
    any length serves a batch of any size. `workers` processes read samples; the batches are the same for any
    number of them.
    """

    splits: Splits
    objective: Objective
    recipe: Recipe
    seed: int
    workers: int = 0

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of `step`, counted from 0. Raises DataError where a sample's files are bad."""
        first = step * self.recipe.batch
        return join([self.sample(first + number) for number in range(self.recipe.batch)])

    def start(self, step: int) -> Iterator[Batch]:
        """Yield the batches from `step` on, without end. Raises DataError where a sample's files are bad."""
        size = self.recipe.batch
        positions = (list(range(first, first + size)) for first in itertools.count(step * size, size))
        loader = DataLoader(
            _Positions(self),
            batch_sampler=positions,
            # More than there are processors would only wait, and torch warns of it.
            num_workers=min(self.workers, _processors()),
            collate_fn=_collate,
            multiprocessing_context="fork" if self.workers else None,
            # Its own: a loader without one draws from torch's global generator.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, MtlbenchError):
                raise batch
            yield batch

    def images(self, step: int) -> list[int]:
        """Return the places in the training split of the images in the batch of `step`."""
        first = step * self.recipe.batch
        return [self._place(position) for position in range(first, first + self.recipe.batch)]

    def _place(self, position: int) -> int:
        """Return which image of the training split is at a position of the stream."""
        epoch, place = divmod(position, len(self.splits.train))
        return _order(self.seed, epoch, len(self.splits.train))[place]

    def sample(self, position: int) -> Batch:
        """Return the augmented sample at a position of the stream, as a batch of one."""
        recipe, protocol, splits = self.recipe, self.objective.protocol, self.splits
        if not len(splits.train):
            raise DataError(f"There is nothing to train on: {splits.origin}.")
        sample = splits.train[self._place(position)]
        height, width = sample.image.shape[-2:]
        generator = torch.Generator().manual_seed(derive(self.seed, "augment", position))
        scales = (recipe.scale_low, recipe.scale_high)
        warp = draw_warp(generator, (height, width), recipe.crop, scales, recipe.mirror)
        pixels = warp_image(sample.image, warp, padding_colour(splits, protocol))
        shown = inside(warp)
        targets, masks = {}, {}
        for task in self.objective.tasks:
            target, mask = self._warped(task, sample.labels[task], warp)
            targets[task], masks[task] = target[None], (mask & shown)[None]
        return Batch(network_input(pixels, splits, protocol)[None], targets, masks)

    def _warped(self, name: str, labelling: Labelling, warp: Warp) -> tuple[Tensor, Tensor]:
        """Return a task's warped target and mask, with the changes to values that the protocol makes.

        What is stored is warped before it is decoded, so that only the pixels of the crop are.
        """
        task, protocol, labels = self.objective.tasks[name], self.objective.protocol, self.objective.labels[name]
        stored = (warp_labels(array, warp, protocol.resize) for array in labelling.stored)
        target, mask = (as_tensor(array) for array in labelling.decode(*stored))
        if warp.mirror and (protocol.mirror_targets or labels.always_mirrored):
            target = task.mirror(target)
        if protocol.rescale_targets:
            target = task.rescale(target, warp.scale, labels)
        return target, mask


def _processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, length: int) -> list[int]:
    """Return the order of the samples in an epoch."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    return order


class _Positions(Dataset[Batch | MtlbenchError]):
    """The samples of a stream by position, for a loader."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getitem__(self, position: int) -> Batch | MtlbenchError:
        # Returned, not raised: a worker's exception arrives wrapped in a traceback.
        try:
            return self._stream.sample(position)
        except MtlbenchError as error:
            return error


def _collate(samples: Sequence[Batch | MtlbenchError]) -> Batch | MtlbenchError:
    good = []
    for sample in samples:
        if isinstance(sample, MtlbenchError):
            return sample
        good.append(sample)
    return join(good)


def join(batches: Sequence[Batch]) -> Batch:
    """Return batches of one size of image as one."""
    return Batch(
        images=torch.cat([batch.images for batch in batches]),
        targets={task: torch.cat([b.targets[task] for b in batches]) for task in batches[0].targets},
        masks={task: torch.cat([b.masks[task] for b in batches]) for task in batches[0].masks},
    )


def evaluation_batches(
    samples: Samples, splits: Splits, objective: Objective, size: int, device: torch.device | None = None
) -> Iterator[Batch]:
    """Yield the samples of a split in order and unchanged, up to `size` consecutive ones of equal size a batch.

    With a `device`, images are there: they travel as bytes, a quarter of what they are as numbers.
    """
    waiting: list[Batch] = []
    for index in range(len(samples)):
        sample = samples[index]
        image = network_input(sample.image.to(device), splits, objective.protocol)[None]
        if waiting and (len(waiting) == size or image.shape != waiting[0].images.shape):
            yield join(waiting)
            waiting = []
        waiting.append(
            Batch(
                images=image,
                targets={task: sample.targets[task][None] for task in objective.tasks},
                masks={task: sample.masks[task][None] for task in objective.tasks},
            )
        )
    if waiting:
        yield join(waiting)
