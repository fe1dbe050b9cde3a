"""Experiments: from what a user asks for, in names and settings, to everything that a run needs."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import nn

from mtlprune_bench.adapters import DataRequest, Dataset, Model, Splits
from mtlprune_bench.checkpoint import WEIGHTS
from mtlprune_bench.config import Engine, RunConfig, convert, digest, override
from mtlprune_bench.data.find import find, prepared_copy
from mtlprune_bench.data.locate import searched
from mtlprune_bench.data.photos import open_photos
from mtlprune_bench.errors import DataError, UsageError, unknown
from mtlprune_bench.files import checksum
from mtlprune_bench.learned import FROM_TRAINED, LearnedMethod
from mtlprune_bench.method import Method
from mtlprune_bench.networks import MULTITASK, SMALL, build_network
from mtlprune_bench.protocols import PROTOCOLS, Protocol
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.registry import Registry
from mtlprune_bench.schedules import Update
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Metric, Objective

SECTIONS = ("method", "model", "data", "train", "finetune", "engine")
"""The sections of settings, as in `--set train.lr=1e-3`."""


@dataclass(frozen=True)
class DataSettings:
    """Where data come from."""

    root: str | None = field(
        default=None, metadata={"help": "folder with the dataset's files; default $MTLBENCH_DATA"}
    )
    layout: str | None = field(
        default=None, metadata={"help": "how the files lie in it, where that is not clear; default: detected"}
    )
    require_real: bool = field(
        default=False, metadata={"help": "stop where the files are not found, instead of running a stand-in"}
    )


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run as a user asks for it; `settings` are by section, `model` None stands for the dataset's."""

    method: str
    dataset: str
    sparsity: float
    seed: int
    model: str | None = None
    protocol: str = "standard"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OpenDataset:
    """A dataset whose samples can be read, or its stand-in, with the model and recipes that go with it."""

    dataset: Dataset
    splits: Splits
    protocol: Protocol
    stand_in: bool
    model: str
    train: Recipe
    finetune: Recipe


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run, ready to be executed; `changes` says in words how its method departs from the registered one."""

    config: RunConfig
    opened: OpenDataset
    objective: Objective
    metrics: Mapping[str, tuple[Metric, ...]]
    model: Model
    changes: str

    @property
    def plan(self) -> tuple[Update, ...]:
        """Return the updates of the masks, by step."""
        method = self.config.method
        if isinstance(method, LearnedMethod):
            return ()
        return method.schedule.plan(self.config.sparsity, self.config.recipe)

    @property
    def needs_dense(self) -> bool:
        """Return whether the run uses a trained dense network."""
        method = self.config.method
        if isinstance(method, LearnedMethod):
            return method.checkpoint == FROM_TRAINED
        return method.pretrained or not self.plan

    @property
    def rewind(self) -> int:
        """Return the step of the dense training that weights are rewound to; 0 for the initial ones, or none."""
        method = self.config.method
        return 0 if isinstance(method, LearnedMethod) else method.start.rewind

    @property
    def small(self) -> bool:
        """Return whether the network is made small, as a control, instead of being pruned."""
        return self._network == SMALL

    @property
    def _network(self) -> str:
        return getattr(self.config.method, "network", MULTITASK)

    def build_model(self, device: torch.device, purpose: str = "init") -> nn.Module:
        """Return the untrained network on `device`; the same weights for the same seed, whatever the method.

        Another `purpose` gives other weights.
        """
        channels, settings = self.objective.channels(), self.config.model_settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.config.seed, purpose))
            network = build_network(self.model, channels, settings, self._network, self.config.sparsity)
        return network.to(device)

    def outline(self, kind: str | None = None) -> nn.Module:
        """Return the network, or that of another `kind`, on the meta device: shapes without numbers."""
        channels, settings = self.objective.channels(), self.config.model_settings
        with torch.device("meta"):
            return build_network(self.model, channels, settings, kind or self._network, self.config.sparsity)


def cache_folder() -> Path:
    """Return where generated samples are kept: $MTLBENCH_CACHE, else the user's cache folder."""
    return Path(os.environ.get("MTLBENCH_CACHE") or platformdirs.user_cache_dir("mtlprune-bench"))


def open_dataset(request: Request, registry: Registry) -> OpenDataset:
    """Return the dataset that `request` names, or its stand-in where its files are not found.

    Raises UsageError for an unknown name and DataError where the files are wrong, or are missing though the
    user named their folder or required them.
    """
    dataset: Dataset = registry.get("datasets", request.dataset)
    protocol = _protocol(request.protocol)
    data = override(DataSettings(), request.settings.get("data", {}), "data")
    root = data.root or os.environ.get("MTLBENCH_DATA")
    asked = DataRequest(dataset.labels, protocol, Path(root) if root else None, cache_folder())
    if data.root and not asked.root.is_dir():  # type: ignore[union-attr]
        raise DataError(f"There is no folder {data.root}. Name the one that holds the files of {dataset.name}.")
    splits = _open_files(dataset, asked, data)
    if splits is not None:
        return OpenDataset(
            dataset=dataset,
            splits=splits,
            protocol=protocol,
            stand_in=splits.generated,
            model=dataset.model,
            train=dataset.train,
            finetune=dataset.finetune,
        )
    if data.root or data.require_real or not dataset.stand_in:
        place, source = f"in {root}", dataset.source
        if dataset.files:
            place = searched(dataset.files, data.root)
            source = f"Where to get them: mtlbench data info {dataset.name}."
        raise DataError(f"The files of {dataset.name} were not found {place}. {source}".strip())
    return _open_stand_in(dataset, asked, registry)


def _open_files(dataset: Dataset, asked: DataRequest, data: DataSettings) -> Splits | None:
    """Return the splits of `dataset`, None where its files are not found; prepared ones are preferred."""
    if dataset.files is None:
        assert dataset.open is not None, "a dataset has files or open"
        return dataset.open(asked)
    found = find(dataset, data.root, data.layout)
    if found is None:
        return None
    tasks = tuple(labels.task for labels in dataset.labels)
    found = prepared_copy(dataset.files, found, tasks, asked.cache) or found
    splits = open_photos(dataset, found.layout, found.root, asked.protocol)
    _ = splits.train[0].targets  # what is wrong with every image is said now, not when training starts
    return splits


def _open_stand_in(dataset: Dataset, asked: DataRequest, registry: Registry) -> OpenDataset:
    """Return generated samples with the tasks of `dataset`."""
    generator: Dataset = registry.get("datasets", dataset.stand_in)
    splits = generator.open(asked) if generator.open else None
    assert splits is not None, "a generated dataset needs no files"
    return OpenDataset(
        dataset=dataset,
        splits=splits,
        protocol=asked.protocol,
        stand_in=True,
        model=generator.model,
        train=generator.train,
        finetune=generator.finetune,
    )


def prepare(request: Request, registry: Registry, opened: OpenDataset) -> Experiment:
    """Return the experiment that `request` describes, on the samples of `opened`.

    Raises UsageError, before anything runs, for unknown names and settings, and values out of range.
    """
    for section, changes in request.settings.items():
        if section not in SECTIONS:
            raise unknown("section of settings", section, SECTIONS)
        if not isinstance(changes, Mapping):
            raise UsageError(f"'{section}' is a section of settings; write {section}.NAME = {changes!r}.")
    if not 0 <= request.sparsity < 1:
        raise UsageError(f"Sparsity {request.sparsity} is not in [0, 1): it is the fraction of weights removed.")
    registered: Method | LearnedMethod = registry.get("methods", request.method)
    method = configure_method(registered, request.settings.get("method", {}), registry)
    model: Model = registry.get("models", request.model or opened.model)
    override(Engine(), request.settings.get("engine", {}), "engine")  # checked here, though no part of a run
    train = override(opened.train, request.settings.get("train", {}), "train")
    finetune = override(opened.finetune, request.settings.get("finetune", {}), "finetune")
    labels = {label.task: label for label in opened.dataset.labels}
    config = RunConfig(
        method=method,
        sparsity=request.sparsity if method.sparse else 0.0,
        seed=request.seed,
        dataset=opened.dataset.name,
        data=opened.splits.fingerprint,
        labels=opened.dataset.labels,
        loss_weights=opened.dataset.loss_weights,
        model=model.name,
        model_settings=override(model.settings, request.settings.get("model", {}), "model"),
        protocol=opened.protocol,
        train=train,
        finetune=finetune if method.budget == "finetune" else None,
        checkpoint=_checkpoint(method),
    )
    objective = Objective(
        tasks={task: registry.get("tasks", task) for task in labels},
        labels=labels,
        weights=opened.dataset.loss_weights,
        protocol=opened.protocol,
    )
    experiment = Experiment(
        config=config,
        opened=opened,
        objective=objective,
        metrics={
            task: tuple(metric for metric in registry.metrics_of(task) if metric.measures(asked))
            for task, asked in labels.items()
        },
        model=model,
        changes=differences(registered, method),
    )
    _ = experiment.plan  # a schedule that does not fit the training says so now
    return experiment


def _checkpoint(method: Method | LearnedMethod) -> str:
    """Return the checksum of the file of weights that a method starts from; "" for none. Raises UsageError."""
    path = getattr(method, "checkpoint", "")
    if path in ("", FROM_TRAINED):
        return ""
    if not Path(path).is_file():
        raise UsageError(f"There is no file {path} to start from; method.checkpoint names a run's {WEIGHTS}.")
    return checksum(Path(path))


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def configure_method(
    method: Method | LearnedMethod, changes: Mapping[str, Any], registry: Registry
) -> Method | LearnedMethod:
    """Return `method` with a variant and other choices on its axes.

    A choice is a registered name (`arbiter = "majority"`), settings of the present value
    (`score = {batches = 10}`), or both (`score = {name = "saliency", batches = 10}`). Raises UsageError.
    """
    changes = dict(changes)
    variant = changes.pop("variant", None)
    if variant is not None and variant != "paper":
        if str(variant) not in method.variants:
            raise unknown(f"variant of {method.name}", str(variant), ["paper", *method.variants])
        method = dataclasses.replace(method, **method.variants[variant])
    axes = {item.name: item for item in dataclasses.fields(method) if "help" in item.metadata}
    chosen = {}
    for name, choice in changes.items():
        if name not in axes:
            raise unknown("setting", f"method.{name}", [f"method.{axis}" for axis in (*axes, "variant")])
        chosen[name] = _choose(method, axes[name], choice, registry)
    return dataclasses.replace(method, **chosen)


def _choose(method: Method | LearnedMethod, item: dataclasses.Field[Any], choice: Any, registry: Registry) -> Any:
    """Return the value that `choice` gives the axis `item` of `method`."""
    where = f"method.{item.name}"
    present = getattr(method, item.name)
    settings = dict(choice) if isinstance(choice, Mapping) else {"name": choice}
    name = settings.pop("name", None)
    if name is not None:
        if item.metadata["kind"]:
            present = registry.get(item.metadata["kind"], str(name))
        elif item.metadata["choices"]:
            if name not in item.metadata["choices"]:
                raise unknown(f"value for {where}:", str(name), item.metadata["choices"])
            present = item.metadata["choices"][name]
        elif dataclasses.is_dataclass(present):
            raise UsageError(f"{where} is set by its parts: {_parts(present, where)}.")
        else:
            present = convert(name, typing.get_type_hints(type(method))[item.name], where)
    if settings:
        if not dataclasses.is_dataclass(present):
            raise UsageError(f"{where} has no settings of its own.")
        present = override(present, settings, where)
    return present


def _parts(value: Any, where: str) -> str:
    return ", ".join(f"{where}.{item.name}" for item in dataclasses.fields(value) if item.init)


def differences(base: Any, changed: Any, where: str = "") -> str:
    """Return in one line how dataclass `changed` differs from `base`: `arbiter=majority score.batches=10`."""
    words = []
    for item in dataclasses.fields(base):
        before, after = getattr(base, item.name), getattr(changed, item.name)
        if before == after or not item.compare:
            continue
        name = f"{where}{item.name}"
        if type(before) is type(after) and dataclasses.is_dataclass(before):
            words.append(differences(before, after, f"{name}."))
        else:
            words.append(f"{name}={getattr(after, 'name', after)}")
    return " ".join(words)


def recipe_text(recipe: Recipe | None) -> str:
    """Return a recipe in words, with a hash of all of it; "" for none."""
    if recipe is None:
        return ""
    return f"{recipe.steps} steps, batch {recipe.batch}, crop {recipe.crop} [{digest(recipe)[:6]}]"
