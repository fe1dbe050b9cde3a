"""Runs from Python: `run` carries out what `mtlbench run` does, on names or on objects of your own."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mtlprune_bench.adapters import Dataset, Model
from mtlprune_bench.api.masks import Masks
from mtlprune_bench.api.networks import Build, as_model
from mtlprune_bench.errors import UsageError
from mtlprune_bench.host.registry import Registry, load_registry
from mtlprune_bench.pruning.learned import LearnedMethod
from mtlprune_bench.pruning.method import Method
from mtlprune_bench.results.render import render
from mtlprune_bench.results.tables import tables
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.runs.reopening import final_network
from mtlprune_bench.runs.request import Request, merge_settings, nested_settings
from mtlprune_bench.runs.suite import LOCAL, execute_all, prepare_all
from mtlprune_bench.runs.worker import Opened
from mtlprune_bench.store import Store
from mtlprune_bench.tasks import Metric, Task

if TYPE_CHECKING:
    import pandas as pd

AnyMethod = str | Method | LearnedMethod
StorePath = str | os.PathLike[str]

GIVEN = "run()"
"""What the registry calls the plugin of objects that were given to `run`."""


@dataclass(frozen=True)
class RunResult:
    """One run, finished or failed; `folder` is its folder in the store, `status` and `reason` say how it ended."""

    experiment: Experiment
    store: Store
    status: str
    reason: str

    @property
    def id(self) -> str:
        """Return the run's name, which `mtlbench show` takes."""
        return self.experiment.config.run_id

    @property
    def folder(self) -> Path:
        """Return the folder with all files of the run."""
        return self.store.run_folder(self.id)

    @property
    def masks(self) -> Masks:
        """Return its final masks, empty if dense. Raises StoreError where the run has not come to its end."""
        return Masks(final_network(self.experiment, self.store)[1])

    @property
    def model(self) -> nn.Module:
        """Return its trained network, on the CPU and in eval mode; removed weights are zero. Raises StoreError."""
        return final_network(self.experiment, self.store)[0]


@dataclass(frozen=True)
class Results(Sequence[RunResult]):
    """The runs that were asked for, in that order, each once; as a sequence, the runs themselves."""

    runs: tuple[RunResult, ...]
    store: Store

    def __getitem__(self, index: Any) -> Any:
        return self.runs[index]

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[RunResult]:
        return iter(self.runs)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Return one row for each number measured, with the columns of `load_results`."""
        rows = self.store.rows()
        return rows[rows["run"].isin([result.id for result in self.runs])].reset_index(drop=True)

    def __str__(self) -> str:
        return table(self.rows)


def run(
    method: AnyMethod | Sequence[AnyMethod],
    dataset: str | Dataset,
    model: str | Model | Build | None = None,
    sparsity: float | Sequence[float] = 0.9,
    seeds: int | Sequence[int] = 1,
    *,
    protocol: str = "standard",
    settings: Mapping[str, Any] | None = None,
    store: StorePath = "runs",
    device: str | None = None,
    plugins: Sequence[str] = (),
    tasks: Sequence[Task] = (),
    metrics: Sequence[Metric] = (),
) -> Results:
    """Train, prune and measure, as `mtlbench run` does, and return what came of it.

    Methods, dataset and model are names, or objects that no plugin has to register; a model may also be whatever
    builds a network: a class, or a function of the tasks' channels or of nothing. Each of several methods runs at
    each of several `sparsity`, in [0, 1), and with each of `seeds`: their number, from 0, or a list. `settings`
    are those of --set, by dotted names or by section: {"train.lr": 1e-3}. `plugins` are files and modules,
    `tasks` and `metrics` those that a dataset of one's own needs.

    What `store` holds already is not run again; a run that fails warns, and has its reason in its rows. Runs of
    objects are carried out in this process alone, as no other one can open them. Raises UsageError and DataError
    before anything runs, and StoreError where the store cannot be written.
    """
    registry = load_registry(plugins)
    for failure in registry.failures:
        warnings.warn(f"Plugin '{failure.plugin}' could not be loaded: {failure.problem}", stacklevel=2)
    given = _Given(registry)
    for kind, values in (("tasks", tasks), ("metrics", metrics)):
        for value in values:
            given.name(kind, value)
    methods = [method] if isinstance(method, str | Method | LearnedMethod) else method
    names = dict.fromkeys(given.name("methods", each) for each in methods)
    data = given.name("datasets", dataset)
    network = given.model(model, data)
    asked = merge_settings({"engine": {"device": device}} if device else {}, nested_settings(settings or {}))
    if given.objects:
        asked = _in_this_process(asked, given.objects)
    requests = [
        Request(
            method=name,
            dataset=data,
            sparsity=float(removed),
            seed=seed,
            model=network,
            protocol=protocol,
            settings=asked,
        )
        for removed in ([sparsity] if isinstance(sparsity, int | float) else sparsity)
        for name in names
        for seed in _seeds(seeds)
    ]
    return _carried_out(requests, Store(Path(store)), registry)


def _carried_out(requests: Sequence[Request], store: Store, registry: Registry) -> Results:
    """Execute `requests` and return their results; failures and stand-ins warn."""

    def notify(text: str) -> None:
        warnings.warn(text, stacklevel=5)

    opened: Opened = {}
    experiments = prepare_all(requests, registry, notify, opened)
    outcomes = {outcome.name: outcome for outcome in execute_all(experiments, store, registry, opened)}
    for outcome in outcomes.values():
        if not outcome.good:
            warnings.warn(f"{outcome.name} {outcome.status}: {outcome.reason}", stacklevel=3)
    results = []
    for experiment in experiments:
        outcome = outcomes[experiment.config.run_id]
        results.append(RunResult(experiment, store, outcome.status, outcome.reason))
    return Results(tuple(results), store)


def _seeds(seeds: int | Sequence[int]) -> Sequence[int]:
    """Return the seeds that are meant by their number, or by a list of them. Raises UsageError."""
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    if not chosen or not all(isinstance(seed, int) and seed >= 0 for seed in chosen):
        raise UsageError(f"Seeds are {seeds!r}; give their number, 1 or more, or a list of whole numbers from 0.")
    return chosen


def _in_this_process(settings: Mapping[str, Any], objects: Sequence[str]) -> dict[str, Any]:
    """Return `settings` by which runs stay in this process. Raises UsageError where they ask for others."""
    alone = {"name": LOCAL, "workers": 1}
    asked = merge_settings({"runner": alone, "engine": {"devices": 1}}, settings)
    if asked["runner"] != alone or asked["engine"]["devices"] != 1:
        raise UsageError(
            f"Only this process can open your {' and '.join(objects)}: leave runner and engine.devices alone, or "
            "register it in a plugin file, name that by plugins=[...], and use names."
        )
    return asked


class _Given:
    """The objects that were given to `run`, registered under their names; `objects` says which, in words."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.objects: list[str] = []

    def name(self, kind: str, value: Any) -> str:
        """Return the name of `value`, which is registered from now on. Raises UsageError where it is taken."""
        if isinstance(value, str):
            return value
        name = str(getattr(value, "name", ""))
        key = f"{value.task}.{name}" if kind == "metrics" else name
        known = self._registry.entries.get((kind, key))
        if known is None:
            self._registry.add(kind, value, GIVEN, GIVEN, None)
        elif known.value != value:
            raise UsageError(
                f"'{key}' of the {kind} is registered already, by plugin '{known.plugin}' ({known.origin}), and "
                "yours is another one: give it a name of its own."
            )
        if known is None or known.origin == GIVEN:
            self.objects.append(f"{kind.removesuffix('s')} '{key}'")
        return name

    def model(self, model: str | Model | Build | None, dataset: str) -> str | None:
        """Return the name of a model, None for that of the dataset, whose tasks tell the channels of outputs."""
        if model is None or isinstance(model, str | Model):
            if not model and not self._registry.get("datasets", dataset).model:
                raise UsageError(f"Dataset '{dataset}' names no model; give one, by model=.")
            return model if model is None else self.name("models", model)
        if not isinstance(model, nn.Module) and not isinstance(model, Callable):  # type: ignore[arg-type]
            raise UsageError(f"model is {model!r}; give a name, a Model, or what builds a network.")
        labels = self._registry.get("datasets", dataset).labels
        tasks = [(label, self._registry.get("tasks", label.task)) for label in labels]
        channels = {task.name: task.channels or label.classes for label, task in tasks}
        return self.name("models", as_model(model, channels))


def load_results(store: StorePath = "runs") -> pd.DataFrame:
    """Return the rows of all runs in `store`: what was measured, with all that identifies it, or why a run failed.

    Raises UsageError where there is no such folder.
    """
    if not Path(store).is_dir():
        raise UsageError(f"There is no store {store}. Make one with run(), or name another.")
    return Store(Path(store)).rows()


def table(
    results: StorePath | pd.DataFrame | Results = "runs",
    format: str = "terminal",
    *,
    filters: Sequence[str] = (),
    columns: Sequence[str] = (),
    sort: str | None = None,
    pivot: str | None = None,
    delta: Sequence[str] = ("mean",),
    published: bool = False,
) -> str:
    """Return comparison tables of a store, of rows, or of what `run` returned, as `mtlbench table` prints them.

    `format` is terminal, markdown, latex, html, csv or json; the rest are the options of that command. Raises
    UsageError for unknown names, and where there is nothing to compare.
    """
    if isinstance(results, str | os.PathLike):
        results = load_results(results)
    rows = results.rows if isinstance(results, Results) else results
    if rows.empty:
        raise UsageError("There are no results to compare. Make some with run(), or name another store.")
    return render(tables(rows, filters, columns, sort, pivot, delta, published), format)
