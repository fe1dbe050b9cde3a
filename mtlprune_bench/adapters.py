"""Adapters: how a dataset or a model, whatever its form, meets the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from torch import Tensor, nn

from mtlprune_bench.data.formats import Array, as_tensor
from mtlprune_bench.data.layouts import Layout, Pair
from mtlprune_bench.errors import PluginError
from mtlprune_bench.protocols import Protocol
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.tasks import Labels


def unchanged(target: Array, mask: Array) -> Pair:
    """Return a target and its mask that are stored as such."""
    return target, mask


@dataclass(frozen=True)
class Labelling:
    """One task's labels of one image: the arrays that are stored, [..., H, W], and what they mean.

    `decode(*stored)` returns the target and its mask, pixel by pixel: it may be given any part of the image.
    """

    stored: tuple[Array, ...]
    decode: Callable[..., Pair]


@dataclass(frozen=True)
class Sample:
    """One labelled image: `image` is RGB uint8 [3, H, W], `labels` are by task.

    Canonical targets are [..., H, W] in the units of their labels (classes int64 [H, W], the rest float32
    [C, H, W]; normals in the camera frame x right, y down, z forward), masks bool [H, W], true where the
    target is valid.
    """

    image: Tensor
    labels: Mapping[str, Labelling]

    @classmethod
    def of(cls, image: Tensor, targets: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Sample:
        """Return a sample of canonical targets and masks, by task."""
        labels = {
            task: Labelling((target.numpy(), masks[task].numpy()), unchanged) for task, target in targets.items()
        }
        return cls(image, labels)

    @property
    def targets(self) -> dict[str, Tensor]:
        """Return the canonical targets, by task."""
        return {task: target for task, (target, _) in self._decoded.items()}

    @property
    def masks(self) -> dict[str, Tensor]:
        """Return where the targets are valid, by task."""
        return {task: mask for task, (_, mask) in self._decoded.items()}

    @cached_property
    def _decoded(self) -> dict[str, tuple[Tensor, Tensor]]:
        pairs = {task: labelling.decode(*labelling.stored) for task, labelling in self.labels.items()}
        return {task: (as_tensor(target), as_tensor(mask)) for task, (target, mask) in pairs.items()}


class Samples(Interface):
    """A split: samples by index, read when asked for."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index`; a pure function of `index`. Raises DataError where its files are bad."""
        ...


@dataclass(frozen=True, kw_only=True)
class Splits:
    """An opened dataset.

    `validation` may be empty. `origin` says in words what the samples are, `fingerprint` identifies them in
    a run's hash, `mean` and `std` are of RGB values in [0, 1]. `generated` says that they only stand in for the
    dataset's own.
    """

    train: Samples
    validation: Samples
    test: Samples
    origin: str
    fingerprint: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    generated: bool = False


@dataclass(frozen=True)
class DataRequest:
    """What to open: the tasks' labels, under which protocol, from which folder (None: nobody named one)."""

    labels: tuple[Labels, ...]
    protocol: Protocol
    root: Path | None
    cache: Path


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a dataset: what they are, and the layouts in which they are read.

    `folders` are names that a folder with them may have, in small letters without - and _; the first stands
    for the dataset in names. `mean` and `std` are of RGB in [0, 1], `sizes` the known numbers of images by
    split.
    """

    title: str
    folders: tuple[str, ...]
    layouts: tuple[Layout, ...]
    sizes: Mapping[str, int]
    licence: str
    # ImageNet's: the released DiSparse code subtracts this mean, in [0, 255] and blue first, and divides by none.
    mean: tuple[float, float, float] = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset by name: its tasks, the paper's recipes and model, and where its samples come from.

    They come from `files`, or from `open(request)`, which returns the splits, or None where there are none;
    it raises DataError where they are wrong, and `source` says where to get them. `stand_in` names the generated
    dataset whose samples, model and recipes run while they are not there. `generate(labels, size, count, seed)`
    of a generated dataset returns `count` samples of `size` = (H, W) pixels. `sources` says where a setting's
    value comes from, by its dotted name or its section's.
    """

    name: str
    description: str
    labels: tuple[Labels, ...]
    loss_weights: Mapping[str, float]
    model: str
    train: Recipe
    finetune: Recipe
    files: Files | None = None
    open: Callable[[DataRequest], Splits | None] | None = None
    generate: Callable[[tuple[Labels, ...], tuple[int, int], int, int], Samples] | None = None
    source: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    stand_in: str = ""

    def __post_init__(self) -> None:
        if (self.files is None) == (self.open is None):
            raise PluginError(f"Dataset '{self.name}' must have either files or open, for its samples.")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A family of multitask networks.

    `build(channels, settings, argument)` returns a module that maps images [B, 3, H, W] to a dict of
    predictions [B, C, h, w], with `channels` = C by task. `settings` is a frozen dataclass, its values the
    defaults. `scaled(settings, factor)` returns those of a network with all widths times `factor` in (0, 1],
    for the comparison with a small dense network. `takes` names what stands behind "name:", "" where nothing
    may.
    """

    name: str
    description: str
    settings: Any
    build: Callable[[Mapping[str, int], Any, str], nn.Module]
    scaled: Callable[[Any, float], Any] | None = None
    takes: str = ""
    argument: str = ""

    def with_argument(self, argument: str) -> Model:
        """Return the model named `name:argument`."""
        return replace(self, name=f"{self.name}:{argument}", argument=argument)
