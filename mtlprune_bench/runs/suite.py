"""Suites: lists of runs, checked as a whole before the first one starts, and executed by a runner."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from typing import Any

from mtlprune_bench.errors import UsageError
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.runs.checks import check
from mtlprune_bench.runs.config import Engine, override
from mtlprune_bench.runs.environment import resolve_device
from mtlprune_bench.runs.experiment import Experiment, prepare
from mtlprune_bench.runs.jobs import Job, Outcome, Runner, graph
from mtlprune_bench.runs.opening import OpenDataset
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.run import record_failure, write_plan
from mtlprune_bench.runs.worker import Opened, Worker, check_shares, opened_for
from mtlprune_bench.store import FINISHED, Store, read_rows
from mtlprune_bench.training.checkpoint import MASKS, SCORES, WEIGHTS
from mtlprune_bench.training.launch import check_devices

LOCAL = "local"
"""The runner where none is named."""


def prepare_all(
    requests: Sequence[Request],
    registry: Registry,
    notify: Callable[[str], None],
    opened: Opened | None = None,
    distinct: bool = False,
) -> list[Experiment]:
    """Return the experiments of `requests`, each once; `notify` is told what the samples are, and of
    what a user may not have meant. Datasets are kept open in `opened`.

    Raises UsageError or DataError for the first request that cannot be carried out; with `distinct` also where
    two requests turn out to be one run. A dense network is one at every sparsity, and may be asked for at several.
    """
    opened = {} if opened is None else opened
    experiments: dict[str, Experiment] = {}
    for request in requests:
        before = len(opened)
        dataset = opened_for(request, registry, opened)
        if len(opened) > before and (dataset.stand_in or dataset.dataset.files):
            notify(notice(dataset))
        experiment = prepare(request, registry, dataset)
        known = experiments.setdefault(experiment.config.run_id, experiment)
        if known is experiment:
            for warning in check(experiment):
                notify(f"{experiment.config.run_id}: {warning}")
        elif distinct and replace(request, sparsity=known.request.sparsity) != known.request:
            raise UsageError(
                f"Run {known.config.run_id} is asked for twice, with settings {_settings(known.request)} and "
                f"{_settings(request)}, which come to the same; exclude one of them."
            )
    return list(experiments.values())


def _settings(request: Request) -> str:
    """Return what a request sets of its method."""
    return str(dict(request.settings.get("method", {})) or "none")


def notice(opened: OpenDataset) -> str:
    """Return what the samples are, loudly where they are not those of the dataset they are named after."""
    if not opened.stand_in:
        return f"{opened.dataset.name}: {opened.splits.origin}."
    return (
        f"STAND-IN DATA: instead of {opened.dataset.name} run, with the same tasks, {opened.splits.origin}.\n"
        f"The numbers say nothing about {opened.dataset.name}. Name the folder of the real files by --data-root "
        "or MTLBENCH_DATA."
    )


def chosen(experiments: Sequence[Experiment], only: Sequence[str], shard: str = "") -> list[Experiment]:
    """Return the experiments whose run id fits one of the patterns `only` (all where there is none), of one shard.

    `shard` "I/N" is the I-th of N parts, "" all. Runs that share stages are in one part, and the parts cost about
    the same. Raises UsageError where nothing fits, or for a shard that is none.
    """
    found = [
        experiment
        for experiment in experiments
        if not only or any(fnmatchcase(experiment.config.run_id, f"{pattern}*") for pattern in only)
    ]
    if not found:
        raise UsageError(
            f"No run fits {' or '.join(only)}; the pattern is the beginning of a run's id, such as snip-nyuv2-0.9."
        )
    return _part(found, shard) if shard else found


def _part(experiments: Sequence[Experiment], shard: str) -> list[Experiment]:
    """Return one of several parts of the experiments."""
    number, slash, count = shard.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UsageError(f"Shard '{shard}' is no part of a whole; write I/N, such as 1/4 for the first of four.")
    families: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        families.setdefault((experiment.stages or (experiment.config.run_id,))[0], []).append(experiment)
    costs = {name: sum(job.cost.backward for job in graph(family)) for name, family in families.items()}
    loads = [0] * int(count)
    mine: list[Experiment] = []
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        lightest = loads.index(min(loads))
        loads[lightest] += costs[name]
        mine += families[name] if lightest == int(number) - 1 else []
    return mine


def status_of(experiment: Experiment, store: Store) -> Outcome | None:
    """Return how a run ended, None where it has not."""
    rows = read_rows(store.run_folder(experiment.config.run_id))
    if not rows:
        return None
    row = next((row for row in rows if row["status"] != FINISHED), rows[0])
    return Outcome(experiment.config.run_id, row["status"], row["reason"])


def failed(experiments: Sequence[Experiment], store: Store) -> list[Experiment]:
    """Return those of `experiments` that have ended, but not well."""
    outcomes = [(experiment, status_of(experiment, store)) for experiment in experiments]
    return [experiment for experiment, outcome in outcomes if outcome is not None and not outcome.good]


def is_made(job: Job, store: Store) -> bool:
    """Return whether the store holds what a stage makes."""
    folder = store.stage_folder(job.name)
    files = [SCORES] if job.kind == "scores" else [WEIGHTS, MASKS]
    return job.kind != "run" and all((folder / file).exists() for file in files)


def remaining(experiments: Sequence[Experiment], store: Store, retry: bool) -> list[Job]:
    """Return the jobs that are left to do; runs that failed are left alone unless `retry`."""
    left = []
    for experiment in experiments:
        outcome = status_of(experiment, store)
        if outcome is None or (retry and not outcome.good):
            left.append(experiment)
    return [job for job in graph(left) if not is_made(job, store)]


def run_all(
    requests: Sequence[Request],
    store: Store,
    registry: Registry,
    notify: Callable[[str], None],
    retry: bool = True,
) -> Iterator[Outcome]:
    """Execute `requests`, as `execute_all` does.

    Raises UsageError or DataError before anything runs, and StoreError where the store cannot be written.
    """
    opened: Opened = {}
    experiments = prepare_all(requests, registry, notify, opened)
    yield from execute_all(experiments, store, registry, opened, retry)


def execute_all(
    runs: Sequence[Experiment], store: Store, registry: Registry, opened: Opened, retry: bool = True
) -> Iterator[Outcome]:
    """Execute `runs` and yield the outcome of each, and of each stage that they share, as it ends.

    What is finished is not done again; what failed is, with `retry`. Raises UsageError before anything runs, and
    StoreError where the store cannot be written.
    """
    if not runs:
        raise UsageError("There is nothing to run.")
    settings = runs[0].request.settings
    engine = override(Engine(), settings.get("engine", {}), "engine")
    device = resolve_device(engine.device)
    runner = runner_of(settings.get("runner", {}), registry)
    if getattr(runner, "name", "") == LOCAL:  # others may have devices that this machine lacks
        check_devices(device, engine.devices)
    for experiment in runs:
        check_shares(experiment.config, engine.devices)
    store.check_writable()
    experiments = {experiment.config.run_id: experiment for experiment in runs}
    jobs = remaining(runs, store, retry)
    left = {job.name for job in jobs}
    for name, experiment in experiments.items():
        ended = status_of(experiment, store)
        if ended is not None and name not in left:
            write_plan(experiment, store, again=False)
            yield ended
    for job in jobs:
        if job.kind == "run":  # so that nobody removes a stage that is made before the run begins
            write_plan(experiments[job.name], store)
    worker = Worker(store, engine, registry, opened, registry.plugins, registry.blocked)
    with contextlib.closing(runner(jobs, worker)) as outcomes:
        for outcome in outcomes:
            if outcome.name in experiments and not outcome.good:
                record_failure(experiments[outcome.name], store, registry, outcome.status, outcome.reason)
            yield outcome


def runner_of(settings: Any, registry: Registry) -> Runner:
    """Return the runner that a section of settings names, with the rest of them. Raises UsageError."""
    rest = dict(settings) if isinstance(settings, dict) else {"name": settings}
    runner: Any = registry.get("runners", str(rest.pop("name", LOCAL)))
    return override(runner, rest, "runner") if fields(runner) else runner  # type: ignore[no-any-return]
