"""Suites: lists of runs, checked as a whole before the first one starts, and executed by a runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mtlprune_bench.checks import check
from mtlprune_bench.config import Engine, override
from mtlprune_bench.environment import resolve_device
from mtlprune_bench.errors import UsageError
from mtlprune_bench.experiment import Experiment, OpenDataset, Request, open_dataset, prepare
from mtlprune_bench.registry import Registry
from mtlprune_bench.run import execute
from mtlprune_bench.store import Row, Store


def prepare_all(
    requests: Sequence[Request], registry: Registry, notify: Callable[[str], None]
) -> list[Experiment]:
    """Return the experiments of `requests`, each once; `notify` is told what the samples are, and of
    what a user may not have meant.

    Raises UsageError or DataError for the first request that cannot be carried out.
    """
    opened: dict[tuple[str, str], OpenDataset] = {}
    experiments: dict[str, Experiment] = {}
    for request in requests:
        key = (request.dataset, request.protocol)
        if key not in opened:
            opened[key] = open_dataset(request, registry)
            if opened[key].stand_in or opened[key].dataset.files:
                notify(notice(opened[key]))
        experiment = prepare(request, registry, opened[key])
        if experiment.config.run_id not in experiments:
            experiments[experiment.config.run_id] = experiment
            for warning in check(experiment):
                notify(f"{experiment.config.run_id}: {warning}")
    return list(experiments.values())


def notice(opened: OpenDataset) -> str:
    """Return what the samples are, loudly where they are not those of the dataset they are named after."""
    if not opened.stand_in:
        return f"{opened.dataset.name}: {opened.splits.origin}."
    return (
        f"STAND-IN DATA: instead of {opened.dataset.name} run, with the same tasks, {opened.splits.origin}.\n"
        f"The numbers say nothing about {opened.dataset.name}. Name the folder of the real files by --data-root "
        "or MTLBENCH_DATA."
    )


def run_all(
    requests: Sequence[Request],
    store: Store,
    registry: Registry,
    runner: str,
    notify: Callable[[str], None],
) -> Iterator[tuple[str, str, str]]:
    """Execute `requests` and yield each run's id, status and reason as it ends.

    Raises UsageError or DataError before anything runs, and StoreError where the store cannot be written.
    """
    if not requests:
        raise UsageError("There is nothing to run.")
    engine = override(Engine(), requests[0].settings.get("engine", {}), "engine")
    resolve_device(engine.device)
    chosen = registry.get("runners", runner)
    experiments = prepare_all(requests, registry, notify)
    store.check_writable()

    def job(experiment: Experiment) -> list[Row]:
        return execute(experiment, store, registry, engine)

    for experiment, rows in zip(experiments, chosen(experiments, job), strict=True):
        yield experiment.config.run_id, rows[0]["status"], rows[0]["reason"]
