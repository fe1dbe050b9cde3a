"""Carries out jobs on this machine: one after the other in this process, or side by side, one process a GPU."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import resource_tracker

import torch
from pebble import ProcessExpired, ProcessPool

from mtlprune_bench import Job, Outcome, Register, Slot, UsageError, Work, hookimpl, lost


@dataclass(frozen=True)
class Local:
    """On this machine: in this process, or side by side, each GPU or share of the processors with a process."""

    name: str = field(default="local", init=False)
    workers: int = field(
        default=0, metadata={"help": "processes side by side; 1: this one; 0: one for each GPU, or this one"}
    )

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"runner.workers is {self.workers}; write how many processes, or 0 for one a GPU.")

    def __call__(self, jobs: Sequence[Job], work: Work) -> Generator[Outcome]:
        """Carry out `jobs`; to close the iterator ends all processes, whatever they are doing."""
        devices = torch.cuda.device_count()
        workers = self.workers or max(1, devices // work.devices)
        if workers == 1:
            return _in_turn(jobs, work)
        if devices:
            first = [number * work.devices % devices for number in range(workers)]
            slots = [Slot(f"cuda:{number}", logged=True) for number in first]
        else:
            slots = [Slot(threads=max(1, _processors() // workers), logged=True)] * workers
        return _side_by_side(jobs, [_Process(work, slot) for slot in slots])


def _processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_turn(jobs: Sequence[Job], work: Work) -> Generator[Outcome]:
    """Carry out `jobs` in this process, in order."""
    ended: dict[str, Outcome] = {}
    for job in jobs:
        ended[job.name] = work(job, [ended[name] for name in job.needs if name in ended], Slot())
        yield ended[job.name]


def _side_by_side(jobs: Sequence[Job], processes: Sequence[_Process]) -> Generator[Outcome]:
    """Carry out `jobs` by `processes`: whenever one is idle, the first job whose needs have ended."""
    waiting = {job.name: job for job in jobs}
    ended: dict[str, Outcome] = {}
    busy: dict[Future[Outcome], tuple[Job, _Process]] = {}
    try:
        while waiting or busy:
            left = {*waiting, *(job.name for job, _ in busy.values())}
            ready = [job for job in waiting.values() if left.isdisjoint(job.needs)]
            working = [process for _, process in busy.values()]
            idle = [process for process in processes if process not in working]
            for job, process in zip(ready, idle, strict=False):
                before = [ended[name] for name in job.needs if name in ended]
                busy[process.begin(waiting.pop(job.name), before)] = job, process
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                job, _ = busy.pop(future)
                ended[job.name] = _outcome(job, future)
                yield ended[job.name]
    finally:
        for process in processes:
            process.end()


def _outcome(job: Job, future: Future[Outcome]) -> Outcome:
    """Return the outcome of a job that has ended, or whose process has; raise what it raised."""
    try:
        return future.result()
    except ProcessExpired as error:
        code = int(error.exitcode)
        if code >= 0:
            return lost(job, f"Its process ended with exit code {code}.")
        hint = "; perhaps memory ran out" if -code == signal.SIGKILL else ""
        return lost(job, f"Its process was killed by signal {-code} ({signal.Signals(-code).name}){hint}.")
    except BrokenProcessPool:
        return lost(job, "Its process ended before it could begin.")


@dataclass(eq=False)
class _Process:
    """A process that carries out jobs in one slot, one after the other, as importing torch takes seconds.

    It is started for the first job, and again after one that killed it. Each is a pool of its own, so that it
    keeps to its GPU, and its death is no other's affair.
    """

    work: Work
    slot: Slot
    pool: ProcessPool | None = None

    def begin(self, job: Job, before: Sequence[Outcome]) -> Future[Outcome]:
        """Carry out `job` from now on, and return where its outcome will be."""
        # Ctrl-C reaches every process of a terminal, but is the parent's affair: a process inherits which signals
        # are blocked. To start Python's tracker of resources unblocks this one, so that has to come first.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            if self.pool is None or not self.pool.active:
                self.end()
                context = multiprocessing.get_context("spawn")
                self.pool = ProcessPool(1, initializer=_prepare, initargs=(self.work,), context=context)
            return self.pool.schedule(_carry_out, args=(job, before, self.slot))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self.pool is not None:
            self.pool.stop()  # type: ignore[no-untyped-call]
            self.pool.join()


_prepared: list[Work] = []
"""In a process of the runner: what it was started for, with the plugins and data that it has opened since."""


def _prepare(work: Work) -> None:
    """Make this process ready for jobs, and end with its parent: an orphan would go on holding its locks."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a process of the runner has a parent"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _prepared.append(work)


def _carry_out(job: Job, before: Sequence[Outcome], slot: Slot) -> Outcome:
    return _prepared[0](job, before, slot)


@hookimpl
def register_runners(register: Register) -> None:
    """Register the runner."""
    register(Local())
