"""Carries out jobs as tasks of Ray, on this machine or on the nodes of a cluster, any of which may be lost."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from mtlprune_bench import Job, MtlbenchError, Outcome, Register, Slot, UsageError, Work, hookimpl, lost

PATIENCE = 30.0
"""Seconds that a cluster has to take us; Ray itself would try for a quarter of an hour."""

QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}
STORE_BYTES = 128 * 1024 * 1024
"""Memory that a Ray of our own shares between its processes: outcomes are small, all else is in files."""

JOIN = f"import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level={logging.ERROR})"
"""A program that joins a cluster and leaves it."""


@dataclass(frozen=True)
class Ray:
    """One task of Ray for each job, on this machine or on a cluster whose nodes share the folder of the store.

    A job whose process or node is lost begins again on another, where its last checkpoint is; one that fits on no
    node that is left waits until one comes.
    """

    name: str = field(default="ray", init=False)
    address: str = field(
        default="", metadata={"help": "cluster: auto, HOST:PORT or ray://HOST:PORT; none: this machine alone"}
    )
    cpus: int = field(default=1, metadata={"help": "processors, and threads, of each job"})
    gpus: float | None = field(
        default=None,
        metadata={"help": "GPUs of each job, a fraction where several share one; none: those that it can use"},
    )
    retries: int = field(default=3, metadata={"help": "times that a job begins again after its process is lost"})

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UsageError(f"runner.cpus is {self.cpus}; a job needs at least 1.")
        if self.gpus is not None and not (0 <= self.gpus < 1 or self.gpus % 1 == 0 < self.gpus):
            raise UsageError(f"runner.gpus is {self.gpus:g}; write 0, a part of one, or a whole number.")
        if self.retries < 0:
            raise UsageError(f"runner.retries is {self.retries}; write 0 or more.")

    def __call__(self, jobs: Sequence[Job], work: Work) -> Generator[Outcome]:
        """Carry out `jobs`; to close the iterator ends all tasks, and Ray where it was started here.

        Raises UsageError where Ray is not installed, does not answer, or has no node that is large enough.
        """
        ray = _ray(self.retries)
        try:
            _connect(ray, self.address)
            slot = Slot("cpu" if self.gpus == 0 else "", threads=self.cpus, logged=True)

            def carry_out(job: Job, *before: Outcome) -> Outcome:
                return work(job, before, slot)

            task = ray.remote(**self._resources(ray, work.devices), max_retries=self.retries)(carry_out)
            yield from _Tasks(ray, task, jobs, work).outcomes()
        finally:
            ray.shutdown()

    def _resources(self, ray: Any, devices: int) -> dict[str, float]:
        """Return what each task takes. Raises UsageError where no node has it."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self.gpus
        if gpus is None:
            gpus = float(devices) if any(node.get("GPU") for node in nodes) else 0.0
        if not any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= gpus for node in nodes):
            found = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise UsageError(
                f"No node of Ray has {self.cpus} CPUs and {gpus:g} GPUs for a job; there are: {found}. "
                "Set runner.cpus or runner.gpus lower."
            )
        return {"num_cpus": self.cpus, "num_gpus": gpus}


class _Tasks:
    """The tasks of some jobs; Ray begins each when those that it needs have ended."""

    def __init__(self, ray: Any, task: Any, jobs: Sequence[Job], work: Work) -> None:
        self.ray, self.work = ray, work
        self.jobs = {job.name: job for job in jobs}
        self.ended: dict[str, Outcome] = {}
        self.refs: dict[str, Any] = {}
        for job in jobs:
            before = [self.refs[name] for name in job.needs if name in self.refs]
            self.refs[job.name] = task.options(name=job.name).remote(job, *before)

    def outcomes(self) -> Generator[Outcome]:
        """Yield the outcome of each job as it ends; whatever still runs when this is closed is ended."""
        waiting = {ref: name for name, ref in self.refs.items()}
        try:
            while waiting:
                (ref,), _ = self.ray.wait(list(waiting))
                yield self._outcome(waiting.pop(ref))
        finally:
            for ref in waiting:
                self.ray.cancel(ref, force=True)

    def _outcome(self, name: str) -> Outcome:
        """Return the outcome of a job that has ended, or that Ray has given up; raise what it raised."""
        if name not in self.ended:
            try:
                self.ended[name] = self.ray.get(self.refs[name])
            except self.ray.exceptions.RayError as error:
                self.ended[name] = self._without_outcome(self.jobs[name], error)
        return self.ended[name]

    def _without_outcome(self, job: Job, error: Exception) -> Outcome:
        """Return the outcome of a job that ended with `error`, or never began as one that it needs did."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, MtlbenchError):
            raise cause from None
        before = [self._outcome(name) for name in job.needs if name in self.refs]
        if not all(needed.good for needed in before):
            return self.work(job, before, Slot())
        reason = f"{type(cause).__name__}: {cause}" if cause else str(error)
        return lost(job, f"Ray gave it up: {reason.strip().splitlines()[0].rstrip('.')}.")


def _ray(retries: int) -> Any:
    """Import Ray, set up to be quiet. Raises UsageError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray has a number of its own for tasks that it killed as memory ran out, and would try them for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(retries))
    try:
        import ray
    except ImportError:
        raise UsageError("The runner 'ray' needs Ray: pip install 'mtlprune-bench[ray]'.") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    """Start Ray on this machine, or join the cluster at `address`. Raises UsageError where none answers."""
    if not address:
        ray.init("local", include_dashboard=False, object_store_memory=STORE_BYTES, **QUIET)
        return
    try:
        if address != "auto":
            parts = urlsplit(address if "//" in address else f"//{address}")
            socket.create_connection((parts.hostname or "", parts.port or 0), timeout=PATIENCE / 3).close()
        # Joining cannot be interrupted, so another process tries it first.
        subprocess.run([sys.executable, "-c", JOIN, address], timeout=PATIENCE, check=True, capture_output=True)
    except subprocess.TimeoutExpired:
        raise _no_answer(address, f"it did not take us within {PATIENCE:g} seconds") from None
    except subprocess.CalledProcessError as error:
        raise _no_answer(address, error.stderr.decode(errors="replace").strip().splitlines()[-1]) from None
    except (OSError, ValueError) as error:
        raise _no_answer(address, str(error)) from None
    ray.init(address, **QUIET)


def _no_answer(address: str, reason: str) -> UsageError:
    return UsageError(
        f"No Ray cluster answers at '{address}': {reason.rstrip('.')}. Start one by `ray start --head`, and more "
        "nodes by `ray start --address HOST:6379`; `ray status` says whether it runs."
    )


@hookimpl
def register_runners(register: Register) -> None:
    """Register the runner."""
    register(Ray())
