"""Jobs: the stages of many runs as a graph, each carried out once, wherever a runner puts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from mtlprune_bench.runs.costs import Cost, parts
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.runs.request import Request
from mtlprune_bench.store import FAILED, FINISHED

Kind = Literal["dense training", "scores", "run"]
ORDER: dict[Kind, int] = {"dense training": 0, "scores": 1, "run": 2}
"""The kinds of jobs; those that others wait for come first."""


@dataclass(frozen=True)
class Job:
    """One stage of a graph: a dense training, the scores of several runs, or the rest of one run.

    `name` is the key of the stage, or the id of the run; `needs` names the jobs that have to end well before it;
    `serves` is the id of the run, or of one that the stage serves, and `request` what was asked for it. `cost` is
    its own planned steps and passes.
    `rewind` is the step at which a dense training stops early, 0 for one of full length.
    """

    name: str
    kind: Kind
    needs: tuple[str, ...]
    serves: str
    request: Request
    cost: Cost
    rewind: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a job ended: with status "finished", or another one and its reason."""

    name: str
    status: str
    reason: str = ""

    @property
    def good(self) -> bool:
        """Return whether those that need the job can begin."""
        return self.status == FINISHED


@dataclass(frozen=True)
class Slot:
    """Where a job is carried out.

    `device` is taken where the engine's is "auto"; `threads` is the number of threads of torch on the CPU; "" and
    0 leave them as they are. With `logged` all that the job prints goes to the file `worker.log` of its folder.
    """

    device: str = ""
    threads: int = 0
    logged: bool = False


class Work(Protocol):
    """Carries out a job in the present process; it can be pickled, to be called in another one.

    `before` are the outcomes of what the job needs: where one is not good, the job fails at once, with its reason.
    A failure is an outcome. Raises StoreError where nothing can be written any more, so that all has to stop.
    `devices` is the number of devices that a job takes.
    """

    @property
    def devices(self) -> int: ...  # noqa: D102

    def __call__(self, job: Job, before: Sequence[Outcome], slot: Slot) -> Outcome: ...  # noqa: D102


Runner = Callable[[Sequence[Job], Work], Generator[Outcome]]
"""Carries out jobs, each after those that it needs, and yields an outcome for every one, as it ends.

Jobs are sorted: no job needs a later one, and those that hold up most come first. A job whose process dies is an
outcome, too; closing the generator ends all processes. Runners are registered frozen dataclasses with a `name`,
whose other fields are their settings.
"""


def graph(experiments: Sequence[Experiment]) -> list[Job]:
    """Return the jobs that `experiments` consist of, each once, in an order in which they can be carried out.

    Scores are a job of their own where several runs prune by the same ones.
    """
    users = Counter(experiment.scores_key for experiment in experiments)
    jobs: dict[str, Job] = {}
    for experiment in experiments:
        for job in _jobs(experiment, users[experiment.scores_key] > 1):
            jobs.setdefault(job.name, job)
    return sorted(jobs.values(), key=lambda job: (ORDER[job.kind], -job.cost.backward))


def _jobs(experiment: Experiment, shares_scores: bool) -> Iterator[Job]:
    """Yield the jobs of one run."""
    own, needs = Cost(), list[str]()
    run = experiment.config.run_id
    request = replace(experiment.request, sparsity=experiment.config.sparsity)  # 0 where the method is dense
    for part in parts(experiment):
        if not part.stage or (part.stage == experiment.scores_key and not shares_scores):
            own += part.cost
            continue
        kind: Kind = "scores" if part.stage == experiment.scores_key else "dense training"
        before = tuple(needs) if kind == "scores" else ()
        rewind = experiment.rewind if part.stage == experiment.rewind_key else 0
        yield Job(part.stage, kind, before, run, request, part.cost, rewind)
        needs.append(part.stage)
    yield Job(run, "run", tuple(needs), run, request, own)


def lost(job: Job, reason: str) -> Outcome:
    """Return the outcome of a job whose process ended without one."""
    return Outcome(job.name, FAILED, f"{reason} Its log is worker.log in the folder of {job.name}.")
