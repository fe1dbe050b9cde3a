"""Workers: they carry out jobs, in the process that planned them or in another one, here or on another machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mtlprune_bench.errors import StoreError
from mtlprune_bench.host.registry import Registry, load_registry
from mtlprune_bench.processes import Processes
from mtlprune_bench.runs.config import Engine, RunConfig
from mtlprune_bench.runs.environment import resolve_device
from mtlprune_bench.runs.experiment import Experiment, prepare
from mtlprune_bench.runs.jobs import Job, Outcome, Slot
from mtlprune_bench.runs.opening import OpenDataset, open_dataset
from mtlprune_bench.runs.pipeline import share_scores
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.run import Run, attempt, execute
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.store import FAILED, FINISHED, Row, Store
from mtlprune_bench.training.launch import check_devices, launch

LOG = "worker.log"
VARIABLES = "MTLBENCH_"
"""What the names of our environment variables begin with; they go with a worker to wherever it works."""

Opened = dict[str, OpenDataset]
"""Datasets that are open, by all that decides which samples they have."""


def opened_for(request: Request, registry: Registry, opened: Opened) -> OpenDataset:
    """Return the dataset of `request`, which `opened` keeps. Raises UsageError or DataError."""
    key = repr((request.dataset, request.protocol, request.settings.get("data", {})))
    if key not in opened:
        opened[key] = open_dataset(request, registry)
    return opened[key]


def check_shares(config: RunConfig, devices: int) -> None:
    """Raise UsageError where `devices` would have to share out fewer images than there are of them."""
    for recipe in (config.train, config.recipe):
        Processes(count=devices).share(recipe.batch // recipe.accumulate)


@dataclass(frozen=True)
class Worker:
    """Carries out the jobs of one store.

    What it keeps open, plugins and datasets, stays behind when it is pickled, and is opened anew where it arrives.
    """

    store: Store
    engine: Engine
    registry: Registry | None = None
    opened: Opened = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    folder: Path = field(default_factory=Path.cwd)
    variables: dict[str, str] = field(
        default_factory=lambda: {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
    )

    @property
    def devices(self) -> int:
        """Return the number of devices that a job takes."""
        return self.engine.devices

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes an equal worker elsewhere."""
        store = Store(self.store.folder.absolute())
        return Worker, (store, self.engine, None, {}, self.plugins, self.blocked, self.folder, self.variables)

    def __call__(self, job: Job, before: Sequence[Outcome], slot: Slot) -> Outcome:
        """Carry out `job` and return its outcome. Raises StoreError where the store cannot be written."""
        for needed in before:
            if not needed.good:
                return Outcome(
                    job.name, FAILED, f"{needed.name}, which it needs, {needed.status}: {needed.reason}"
                )
        is_run = job.kind == "run"
        folder = self.store.run_folder(job.name) if is_run else self.store.stage_folder(job.name)
        if slot.threads:
            torch.set_num_threads(slot.threads)
        ended: list[Outcome] = []
        with _logged(folder) if slot.logged else contextlib.nullcontext():
            status, reason = attempt(folder, lambda: ended.append(self._carry_out(job, slot)))
        return ended[0] if ended else Outcome(job.name, status, " ".join(reason.split()))

    def _carry_out(self, job: Job, slot: Slot) -> Outcome:
        """Carry out a job whose needs are fulfilled."""
        registry, experiment = self._open(job)
        named = self.engine.device != "auto"
        engine = replace(self.engine, device=self.engine.device if named else slot.device or "auto")
        device = resolve_device(engine.device)
        check_devices(device, engine.devices)
        check_shares(experiment.config, engine.devices)

        several = partial(launch, partial(self.part, job), device, engine.devices) if engine.devices > 1 else None
        if job.kind == "run":
            row = execute(experiment, self.store, registry, engine, several)[0]
            return Outcome(job.name, row["status"], row["reason"])
        (several or partial(self.part, job, engine.device))()
        return Outcome(job.name, FINISHED)

    def part(self, job: Job, device: str) -> list[Row]:
        """Carry out, on one device, a job or this process's part of it; return the rows if it is a run."""
        registry, experiment = self._open(job)
        engine = replace(self.engine, device=device)
        if job.kind == "run":
            return Run(experiment, self.store, registry, engine).rows()
        stages = Stages(experiment, self.store, registry, engine, resolve_device(device))
        model = experiment.build_model(stages.device)
        if job.kind == "scores":
            share_scores(stages, model)
        else:
            stages.dense(model, job.rewind)
        return []

    def _open(self, job: Job) -> tuple[Registry, Experiment]:
        """Return the plugins, and what `job` is to do."""
        registry = self._arrive() if self.registry is None else self.registry
        return registry, prepare(job.request, registry, opened_for(job.request, registry, self.opened))

    def _arrive(self) -> Registry:
        """Load the plugins in a process that knows nothing yet."""
        os.environ.update(self.variables)
        with contextlib.suppress(OSError):  # another machine may not have the folder, and paths may be absolute
            os.chdir(self.folder)
        registry = load_registry(self.plugins, self.blocked)
        object.__setattr__(self, "registry", registry)
        return registry


@contextlib.contextmanager
def _logged(folder: Path) -> Iterator[None]:
    """Send all that this process prints to the log in `folder`, what libraries print below Python too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log = (folder / LOG).open("ab")
    except OSError as error:
        raise StoreError(f"Cannot write in {folder}: {error.strerror or error}. Choose another folder.") from error
    streams = (sys.stdout, sys.stderr)
    own = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        yield
    finally:
        for stream in streams:
            stream.flush()
        for number, kept in zip((1, 2), own, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        log.close()
