"""Adapters: how a dataset or a model, whatever its form, meets the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

from torch import Tensor, nn

from mtlprune_bench.protocols import Protocol
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.tasks import Labels


@dataclass(frozen=True)
class Sample:
    """One labelled image in canonical form.

    `image` is uint8 RGB [3, H, W]. `targets` and `masks` are by task: a target is [..., H, W] in the units
    of its labels (classes int64 [H, W], the rest float32 [C, H, W]; normals in the camera frame x right,
    y down, z forward), a mask bool [H, W], true where the target is valid.
    """

    image: Tensor
    targets: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]


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
    a run's hash, `mean` and `std` are of RGB values in [0, 1].
    """

    train: Samples
    validation: Samples
    test: Samples
    origin: str
    fingerprint: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class DataRequest:
    """What to open: the tasks' labels, under which protocol, from which folder (None: nobody named one)."""

    labels: tuple[Labels, ...]
    protocol: Protocol
    root: Path | None
    cache: Path


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset by name: its tasks, the paper's recipes and model, and how to open its files.

    `open(request)` returns the splits, or None where the files are not there; it raises DataError where
    they are there but wrong. `stand_in` names the generated dataset whose samples, model and recipes run
    while they are not there; `generated` marks a dataset that makes its samples itself. `source` says where
    to get the files, `sources` where a setting's value comes from, by its dotted name or its section's.
    """

    name: str
    description: str
    labels: tuple[Labels, ...]
    loss_weights: Mapping[str, float]
    model: str
    train: Recipe
    finetune: Recipe
    open: Callable[[DataRequest], Splits | None]
    source: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    stand_in: str = ""
    generated: bool = False


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
