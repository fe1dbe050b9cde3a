"""Surveys of a suite: its stages as a graph, what of it is done, running or left, and how long the rest takes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mtlprune_bench.files import is_locked
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.runs.catalogue import Table
from mtlprune_bench.runs.config import Engine, digest
from mtlprune_bench.runs.costs import Cost, kept_cost, parts
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.runs.jobs import Job, Outcome, graph
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.runs.suite import is_made, status_of
from mtlprune_bench.store import FINISHED, LOCK, Store, read_history
from mtlprune_bench.training.train import HISTORY

RUNNING = "running"
WAITING = "waiting"
STOPPED = "stopped"

MEASURED_STEPS = 5
"""Optimizer steps by which a training's speed is measured where the store knows none."""


@dataclass(frozen=True)
class State:
    """How far a job is: finished, failed, running (at `step`), stopped half way, or waiting."""

    job: Job
    status: str
    reason: str = ""
    step: int = 0

    @property
    def done(self) -> bool:
        """Return whether it has ended well."""
        return self.status == FINISHED


def survey(
    experiments: Sequence[Experiment], store: Store, known: Mapping[str, Outcome] | None = None
) -> list[State]:
    """Return the state of every job; runs that ended are not looked up again where they are `known`."""
    found = {e.config.run_id: (known or {}).get(e.config.run_id) or status_of(e, store) for e in experiments}
    return [_state(job, found.get(job.name), store) for job in graph(experiments)]


def _state(job: Job, outcome: Outcome | None, store: Store) -> State:
    if outcome is not None:
        return State(job, outcome.status, outcome.reason)
    if is_made(job, store):
        return State(job, FINISHED)
    folder = folder_of(job, store)
    step = max((entry["step"] + 1 for path in _histories(folder) for entry in read_history(path)), default=0)
    if is_locked(folder / LOCK):
        return State(job, RUNNING, step=step)
    return State(job, STOPPED if step else WAITING, step=step)


def folder_of(job: Job, store: Store) -> Path:
    """Return the folder in which a job leaves what it makes."""
    return store.run_folder(job.name) if job.kind == "run" else store.stage_folder(job.name)


def _histories(folder: Path) -> list[Path]:
    return [folder / HISTORY] if (folder / HISTORY).exists() else sorted(folder.glob(f"*/{HISTORY}"))[-1:]


def status_tables(states: Sequence[State]) -> list[Table]:
    """Return how many jobs of each method are in which state, and which are running or have failed."""
    counts: dict[str, Counter[str]] = {}
    for state in states:
        counts.setdefault(label(state.job), Counter())[state.status] += 1
    columns = list(dict.fromkeys([FINISHED, RUNNING, STOPPED, WAITING, *(state.status for state in states)]))
    rows = [[name, *(str(count[column] or "") for column in columns)] for name, count in counts.items()]
    total = Counter(state.status for state in states)
    rows.append(["total", *(str(total[column]) for column in columns)])
    running = [[s.job.name, f"{s.step} of {s.job.cost.steps}"] for s in states if s.status == RUNNING]
    failed = [[s.job.name, s.status, s.reason] for s in states if s.reason]
    tables = [("jobs", rows, ["", *columns])]
    tables += [("running", running, ["job", "step"])] if running else []
    tables += [("failed", failed, ["run", "status", "reason"])] if failed else []
    return tables


def label(job: Job) -> str:
    """Return what a job is, in a word or two: the method of a run, or the kind of a stage."""
    return job.request.method if job.kind == "run" else job.kind


def tree(states: Sequence[State]) -> list[str]:
    """Return the graph of stages as lines; runs of one method below one stage share a line."""
    below: dict[str, list[State]] = {}
    names = {state.job.name for state in states}
    for state in states:
        parents = [name for name in state.job.needs if name in names]
        below.setdefault(parents[-1] if parents else "", []).append(state)
    return list(_branches(below, "", ""))


def _branches(below: Mapping[str, Sequence[State]], name: str, indent: str) -> Iterator[str]:
    """Yield the lines of what hangs on the stage `name`: further stages first, then runs by method."""
    children = below.get(name, ())
    stages = [state for state in children if state.job.kind != "run"]
    methods: dict[str, list[State]] = {}
    for state in children:
        if state.job.kind == "run":
            methods.setdefault(state.job.request.method, []).append(state)
    items: list[State | list[State]] = [*stages, *methods.values()]
    for number, item in enumerate(items):
        corner, bar = ("└─ ", "   ") if number == len(items) - 1 else ("├─ ", "│  ")
        corner, bar = (corner, bar) if name else ("", "")
        if isinstance(item, State):
            yield f"{indent}{corner}{item.job.name}  {_words(item.job.cost)}{'  done' if item.done else ''}"
            yield from _branches(below, item.job.name, indent + bar)
        else:
            yield f"{indent}{corner}{_runs(item)}"


def _runs(states: Sequence[State]) -> str:
    """Return runs of one method in one line."""
    sparsities = sorted({state.job.request.sparsity for state in states} - {0.0})
    at = f" at {' '.join(f'{value:g}' for value in sparsities)}" if sparsities else ""
    cost = sum((state.job.cost for state in states), Cost())
    done = sum(state.done for state in states)
    finished = "  done" if done == len(states) else f"  {done} done" if done else ""
    count = f"{len(states)} runs" if len(states) > 1 else "1 run"
    return f"{states[0].job.request.method}{at}: {count}, {_words(cost)}{finished}"


def _words(cost: Cost) -> str:
    return f"{cost.steps} steps, {cost.forward} forward, {cost.backward} backward"


def totals(experiments: Sequence[Experiment], states: Sequence[State]) -> Table:
    """Return the steps and passes of a suite: of every run for itself, with shared stages, and what is left."""
    apart = sum((part.cost for experiment in experiments for part in parts(experiment)), Cost())
    shared = sum((state.job.cost for state in states), Cost())
    left = sum((state.job.cost for state in states if not state.done), Cost())
    rows = [
        [name, *map(str, (cost.steps, cost.forward, cost.backward)), f"{cost.steps / max(apart.steps, 1):.2f}"]
        for name, cost in (("every run for itself", apart), ("stages shared", shared), ("left to do", left))
    ]
    return "training steps and passes", rows, ["", "steps", "forward", "backward", "share of steps"]


def speed_key(experiment: Experiment) -> str:
    """Return what the time of a training step depends on: samples, network, batch and crop."""
    config, recipe = experiment.config, experiment.config.recipe
    return digest([config.dataset, config.data, config.model, config.model_settings, recipe.batch, recipe.crop])


def measured_speeds(experiments: Sequence[Experiment], states: Sequence[State], store: Store) -> dict[str, float]:
    """Return the seconds for each backward pass of what is finished, by `speed_key`."""
    keys = {experiment.config.run_id: speed_key(experiment) for experiment in experiments}
    spent: dict[str, Cost] = {}
    for state in states:
        if state.done and state.job.cost.steps:
            key = keys[state.job.serves]
            passes = Cost(backward=state.job.cost.backward)
            spent[key] = spent.get(key, Cost()) + passes + kept_cost(folder_of(state.job, store))
    return {key: cost.seconds / cost.backward for key, cost in spent.items() if cost.seconds}


def measure_speeds(
    experiments: Iterable[Experiment], registry: Registry, engine: Engine, device: torch.device
) -> dict[str, float]:
    """Return the seconds for each backward pass, by `speed_key`, of a few training steps made to see."""
    speeds: dict[str, float] = {}
    for experiment in experiments:
        key = speed_key(experiment)
        if key in speeds:
            continue
        with tempfile.TemporaryDirectory() as folder:
            stages = Stages(experiment, Store(Path(folder)), registry, engine, device)
            recipe = dataclasses.replace(experiment.config.recipe, steps=MEASURED_STEPS)
            model = experiment.build_model(device)
            stages.train(Path(folder), "measuring", model, recipe, {}, select=None)
            speeds[key] = kept_cost(Path(folder)).seconds / MEASURED_STEPS
    return speeds


def estimate(
    experiments: Sequence[Experiment], states: Sequence[State], speeds: Mapping[str, float]
) -> tuple[float, int]:
    """Return the seconds that the jobs left take one after the other, and the number of those of unknown speed."""
    keys = {experiment.config.run_id: speed_key(experiment) for experiment in experiments}
    left = [state.job for state in states if not state.done]
    known = [job for job in left if keys[job.serves] in speeds]
    return sum(speeds[keys[job.serves]] * job.cost.backward for job in known), len(left) - len(known)
