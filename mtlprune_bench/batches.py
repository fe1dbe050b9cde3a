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

from mtlprune_bench.adapters import Sample, Samples, Splits
from mtlprune_bench.augment import Warp, draw_warp, warp_image, warp_labels, warp_mask
from mtlprune_bench.errors import DataError, MtlbenchError
from mtlprune_bench.protocols import Protocol
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Batch, Objective

BGR = [2, 1, 0]


def network_input(pixels: Tensor, splits: Splits, protocol: Protocol) -> Tensor:
    """Return RGB `pixels` [..., 3, H, W] in [0, 255] as the protocol feeds them to a network, float32."""
    mean = torch.tensor(splits.mean)[:, None, None]
    if protocol.pixels == "bgr255":
        return (pixels.float() - 255 * mean)[..., BGR, :, :]
    return (pixels.float() / 255 - mean) / torch.tensor(splits.std)[:, None, None]


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
        return stack([self.sample(first + number) for number in range(self.recipe.batch)])

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

    def sample(self, position: int) -> Sample:
        """Return the augmented sample at a position of the stream; its image is the network's input."""
        recipe, protocol, splits = self.recipe, self.objective.protocol, self.splits
        if not len(splits.train):
            raise DataError(f"There is nothing to train on: {splits.origin}.")
        epoch, place = divmod(position, len(splits.train))
        sample = splits.train[_order(self.seed, epoch, len(splits.train))[place]]
        height, width = sample.image.shape[-2:]
        generator = torch.Generator().manual_seed(derive(self.seed, "augment", position))
        scales = (recipe.scale_low, recipe.scale_high)
        warp = draw_warp(generator, (height, width), recipe.crop, scales, recipe.mirror)
        pixels = warp_image(sample.image, warp, padding_colour(splits, protocol))
        return Sample(
            image=network_input(pixels, splits, protocol),
            targets={task: self._target(task, sample.targets[task], warp) for task in self.objective.tasks},
            masks={task: warp_mask(sample.masks[task], warp, protocol.resize) for task in self.objective.tasks},
        )

    def _target(self, name: str, target: Tensor, warp: Warp) -> Tensor:
        """Return a task's warped target, with the changes to its values that the protocol makes."""
        task, protocol = self.objective.tasks[name], self.objective.protocol
        target = warp_labels(target, warp, protocol.resize)
        if warp.mirror and protocol.mirror_targets:
            target = task.mirror(target)
        if protocol.rescale_targets:
            target = task.rescale(target, warp.scale, self.objective.labels[name])
        return target


def _processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, length: int) -> list[int]:
    """Return the order of the samples in an epoch."""
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    return order


class _Positions(Dataset[Sample | MtlbenchError]):
    """The samples of a stream by position, for a loader."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getitem__(self, position: int) -> Sample | MtlbenchError:
        # Returned, not raised: a worker's exception arrives wrapped in a traceback.
        try:
            return self._stream.sample(position)
        except MtlbenchError as error:
            return error


def _collate(samples: Sequence[Sample | MtlbenchError]) -> Batch | MtlbenchError:
    good = []
    for sample in samples:
        if isinstance(sample, MtlbenchError):
            return sample
        good.append(sample)
    return stack(good)


def stack(samples: Sequence[Sample]) -> Batch:
    """Return samples of one size as a batch; their images are a network's input."""
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        targets={task: torch.stack([s.targets[task] for s in samples]) for task in samples[0].targets},
        masks={task: torch.stack([s.masks[task] for s in samples]) for task in samples[0].masks},
    )


def evaluation_batches(samples: Samples, splits: Splits, objective: Objective, size: int) -> Iterator[Batch]:
    """Yield the samples of a split in order and unchanged, up to `size` consecutive ones of equal size a batch."""
    waiting: list[Sample] = []
    for index in range(len(samples)):
        sample = samples[index]
        if waiting and (len(waiting) == size or sample.image.shape != waiting[0].image.shape):
            yield stack(waiting)
            waiting = []
        waiting.append(
            Sample(
                image=network_input(sample.image, splits, objective.protocol),
                targets={task: sample.targets[task] for task in objective.tasks},
                masks={task: sample.masks[task] for task in objective.tasks},
            )
        )
    if waiting:
        yield stack(waiting)
