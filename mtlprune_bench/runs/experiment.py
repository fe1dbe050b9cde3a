"""Experiments: from what a user asks for, in names and settings, to everything that a run needs."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtlprune_bench.adapters import Model
from mtlprune_bench.errors import UsageError, unknown
from mtlprune_bench.files import checksum
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.pruning.learned import FROM_TRAINED, LearnedMethod
from mtlprune_bench.pruning.method import Method
from mtlprune_bench.pruning.schedules import Update
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.runs.config import Engine, RunConfig, convert, digest, override
from mtlprune_bench.runs.opening import OpenDataset
from mtlprune_bench.runs.request import SECTIONS, Request
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Metric, Objective
from mtlprune_bench.training.checkpoint import WEIGHTS
from mtlprune_bench.training.networks import MULTITASK, SMALL, build_network


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run, ready to be executed; `changes` says in words how its method departs from the registered one."""

    request: Request
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
    def rewind_key(self) -> str:
        """Return the name of the dense training that stops at the step rewound to; "" for none."""
        return f"{self.config.dense_key}-step-{self.rewind}" if self.rewind else ""

    @property
    def scores_key(self) -> str:
        """Return the name of the scores that the first masks are made of; "" where others cannot use them.

        They do not depend on sparsity, arbiter or allocation. Scores made in rounds do, and those that take no
        passes through the network need not be kept.
        """
        method, plan = self.config.method, self.plan
        if isinstance(method, LearnedMethod) or not plan or method.score is None:
            return ""
        before_training = plan[0].step == 0 and plan[0].regrow is None
        if not before_training or method.rounds > 1 or not any(method.score.passes(len(self.objective.tasks))):
            return ""
        described = {
            "network": self.config.dense_key,
            "score": method.score,
            "scope": method.scope,
            "pretrained": method.pretrained,
        }
        return f"scores-{self.config.dataset}-s{self.config.seed}-{digest(described)}"

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages that it may share with other runs."""
        keys = (self.config.dense_key if self.needs_dense else "", self.rewind_key, self.scores_key)
        return tuple(key for key in keys if key)

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
        return network.to(device, torch.float64 if self.config.train.double else None)

    def outline(self, kind: str | None = None) -> nn.Module:
        """Return the network, or that of another `kind`, on the meta device: shapes without numbers."""
        channels, settings = self.objective.channels(), self.config.model_settings
        with torch.device("meta"):
            return build_network(self.model, channels, settings, kind or self._network, self.config.sparsity)


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
    if method.budget == "finetune" and train.double != finetune.double:
        raise UsageError(
            "Precision fp64 is that of the weights, through all of a run; set train.precision and "
            "finetune.precision to it, as --precision fp64 does."
        )
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
        request=request,
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
    words = f"{recipe.steps} steps, batch {recipe.batch}"
    words += f" in {recipe.accumulate} pieces" if recipe.accumulate > 1 else ""
    words += f", crop {recipe.crop}" + (f", {recipe.precision}" if recipe.precision != "fp32" else "")
    words += f", {recipe.memory_format}" if recipe.memory_format != "channels_first" else ""
    words += ", compiled" if recipe.compile else ""
    return f"{words} [{digest(recipe)[:6]}]"
