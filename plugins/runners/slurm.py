"""Carries out jobs on a cluster under Slurm: an array of them for each rank of the graph, through submitit."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mtlprune_bench import Job, MtlbenchError, Outcome, Register, Slot, UsageError, Work, hookimpl, lost

POLL_SECONDS = 1.0
"""Time between two looks for files of results; Slurm itself is asked once a minute."""


@dataclass(frozen=True)
class Slurm:
    """Arrays of jobs under Slurm, each rank after the one before; all nodes share the folder of the store.

    A job that runs out of time, or has to make room for another, goes on where it stopped.
    """

    name: str = field(default="slurm", init=False)
    folder: str = field(
        default="slurm",
        metadata={"help": "folder for what Slurm's jobs print and return, on a disk of all nodes"},
    )
    partition: str = field(default="", metadata={"help": "partition of the cluster; none: its default"})
    minutes: int = field(default=240, metadata={"help": "time of a job, after which it is queued again"})
    retries: int = field(default=3, metadata={"help": "times that a job is queued again as its time was over"})
    gpus: int | None = field(
        default=None, metadata={"help": "GPUs of each job; 0: it is for CPUs; none: those that it can use"}
    )
    cpus: int = field(default=4, metadata={"help": "processors, and threads, of each job"})
    memory: float = field(default=16.0, metadata={"help": "memory of each job, GB"})
    parallel: int = field(default=64, metadata={"help": "jobs that may run side by side"})
    options: tuple[str, ...] = field(
        default=(), metadata={"help": "more options of sbatch, as in account=vision,qos=long"}
    )
    cluster: Literal["slurm", "local"] = field(
        default="slurm", metadata={"help": "local: processes of this machine, all at once, to try things out"}
    )

    def __post_init__(self) -> None:
        least = {"minutes": 1, "retries": 0, "gpus": 0, "cpus": 1, "memory": 0, "parallel": 1}
        for name, number in least.items():
            value = getattr(self, name)
            if value is not None and not value >= number:
                raise UsageError(f"runner.{name} is {value}; write {number} or more.")
        for option in self.options:
            if not all(option.partition("=")):
                raise UsageError(f"runner.options has '{option}'; write NAME=VALUE, such as account=vision.")

    def __call__(self, jobs: Sequence[Job], work: Work) -> Generator[Outcome]:
        """Carry out `jobs`; to close the iterator cancels what is queued or running.

        Raises UsageError where submitit is not installed, or Slurm is not there or does not take the jobs.
        """
        executor = self._executor(work.devices if self.gpus is None else self.gpus)
        task = _task(work, Slot("cpu" if self.gpus == 0 else "", self.cpus, logged=True))
        ended: dict[str, Outcome] = {}
        left = list(jobs)
        while left:
            names = {job.name for job in left}
            rank = [job for job in left if names.isdisjoint(job.needs)]
            left = [job for job in left if job not in rank]
            before = {job.name: [ended[name] for name in job.needs if name in ended] for job in rank}
            ready = [job for job in rank if all(needed.good for needed in before[job.name])]
            failures = (work(job, before[job.name], Slot()) for job in rank if job not in ready)
            with contextlib.closing(_outcomes(executor, task, ready, before)) as outcomes:
                for outcome in itertools.chain(failures, outcomes):
                    ended[outcome.name] = outcome
                    yield outcome

    def _executor(self, gpus: int) -> Any:
        """Return what submits jobs that take so many GPUs each. Raises UsageError."""
        try:
            import submitit
        except ImportError:
            raise UsageError("The runner 'slurm' needs submitit: pip install 'mtlprune-bench[slurm]'.") from None
        if self.cluster == "slurm" and not (shutil.which("srun") and shutil.which("sbatch")):
            raise UsageError(
                "There is no Slurm on this machine, as srun and sbatch were not found. Start the suite where jobs "
                "are submitted, choose another runner, or try this one by runner.cluster=local."
            )
        limits = {f"{name}_max_num_timeout": self.retries for name in ("slurm", "local")}
        try:
            executor = submitit.AutoExecutor(self.folder, self.cluster, **limits)
        except OSError as error:
            raise UsageError(
                f"Cannot write in {self.folder}: {error.strerror or error}. Choose another runner.folder."
            ) from error
        executor.update_parameters(
            name="mtlbench",
            timeout_min=self.minutes,
            cpus_per_task=self.cpus,
            mem_gb=self.memory,
            slurm_array_parallelism=self.parallel,
            slurm_additional_parameters=dict(option.split("=", 1) for option in self.options),
            **({"gpus_per_node": gpus} if gpus else {}),
            **({"slurm_partition": self.partition} if self.partition else {}),
        )
        return executor


def _task(work: Work, slot: Slot) -> Any:
    """Return what carries out a job where Slurm has started it."""
    from submitit.helpers import Checkpointable

    # submitit queues what is checkpointable again; it returns the trace of an error, but not the error.
    class Task(Checkpointable):
        def __call__(self, job: Job, before: Sequence[Outcome]) -> Outcome | MtlbenchError:
            try:
                return work(job, before, slot)
            except MtlbenchError as error:
                return error
            except Exception as error:
                return lost(job, f"{type(error).__name__}: {error}.")

    task: Any = Task
    return task()


def _outcomes(
    executor: Any, task: Any, jobs: Sequence[Job], before: Mapping[str, Sequence[Outcome]]
) -> Generator[Outcome]:
    """Submit `jobs` as one array and yield the outcome of each as it ends; cancel the others when closed."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import as_completed

    if not jobs:
        return
    try:
        with executor.batch():
            submissions = [executor.submit(task, job, before[job.name]) for job in jobs]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UsageError(
            f"Slurm did not take the jobs: {' '.join(str(error).split())} Look at the settings runner.partition, "
            "runner.gpus, runner.memory, runner.minutes and runner.options."
        ) from error
    waiting = dict(zip(submissions, jobs, strict=True))
    try:
        for submitted in as_completed(submissions, poll_frequency=POLL_SECONDS):
            yield _outcome(waiting.pop(submitted), submitted)
    finally:
        for submitted in waiting:
            submitted.cancel(check=False)


def _outcome(job: Job, submitted: Any) -> Outcome:
    """Return the outcome of a job that has ended, or that Slurm has ended; raise what it raised."""
    from submitit.core.utils import UncompletedJobError

    try:
        result: Outcome | MtlbenchError = submitted.result()
    except UncompletedJobError:
        reason = f"Job {submitted.job_id} of Slurm ended without an outcome, in state {submitted.state}"
        return lost(job, f"{reason}; what it printed is in {submitted.paths.stderr}.")
    if isinstance(result, MtlbenchError):
        raise result
    return result


@hookimpl
def register_runners(register: Register) -> None:
    """Register the runner."""
    register(Slurm())
