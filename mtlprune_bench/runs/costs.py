"""Costs: the optimizer steps and the passes through the network that a run takes, and its time and memory."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from mtlprune_bench.errors import StoreError
from mtlprune_bench.pruning.learned import FROM_TRAINED, LearnedMethod
from mtlprune_bench.pruning.method import JOINT, Method, Scorer
from mtlprune_bench.pruning.regrow import scores_growth
from mtlprune_bench.pruning.schedules import Update, spans
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.store import read_json, write_json
from mtlprune_bench.training.networks import SINGLE_TASK

COST = "cost.json"


@dataclass(frozen=True)
class Cost:
    """What a part of a run takes.

    `steps` are optimizer steps; `forward` and `backward` passes of a batch through a network, in training and
    scoring but not in evaluation; `seconds` of wall clock; `peak_memory` the most memory held at once, MB, of
    the accelerator, or of the process on a CPU.
    """

    steps: int = 0
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0
    peak_memory: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        return Cost(
            self.steps + other.steps,
            self.forward + other.forward,
            self.backward + other.backward,
            self.seconds + other.seconds,
            max(self.peak_memory, other.peak_memory),
        )


@dataclass(frozen=True)
class Part:
    """A part of a run: its name, its planned cost (steps and passes), and more in words.

    `stage` is the key of the stage that does it for all runs that need the same, "" where it is the run's own.
    """

    name: str
    cost: Cost
    detail: str = ""
    stage: str = ""


def parts(experiment: Experiment) -> list[Part]:
    """Return what a run consists of, in order, with the steps and passes of each part."""
    config = experiment.config
    method, recipe = config.method, config.recipe
    if isinstance(method, LearnedMethod):
        dense = [_dense(experiment)] if method.checkpoint == FROM_TRAINED else []
        return [*dense, _training("training", recipe.steps, f"a threshold for each {method.group_by}")]
    networks = len(config.labels) if method.network == SINGLE_TASK else 1
    found = []
    if experiment.needs_dense:
        found.append(_dense(experiment, networks))
    rewind = experiment.rewind
    if rewind:
        detail = "the same steps once more"
        found.append(_training("training to rewind to", rewind, detail, networks, experiment.rewind_key))
    voters = 1 if method.scope == JOINT else len(config.labels)
    for number, span in enumerate(spans(experiment.plan, recipe.steps) if experiment.plan else ()):
        words = _words(method, voters)
        if span.first:
            stage = "" if number else experiment.scores_key
            cost = _scoring(method, span.first, voters, networks)
            found.append(Part("masks before training", cost, words, stage))
        if span.later:
            cost = sum((_scoring(method, update, voters, networks) for update in span.later), Cost())
            found.append(Part(f"updates while training ({len(span.later)})", cost, words))
        weights = f"the weights of step {rewind}" if rewind else f"{method.start.train_from} weights"
        detail = "" if number and not method.start.rewinds else f"from {weights}"
        found.append(_training(method.budget, span.steps - rewind, detail, networks))
    return found


def _dense(experiment: Experiment, networks: int = 1) -> Part:
    detail, config = "shared by all runs with this seed", experiment.config
    return _training("dense training", config.train.steps, detail, networks, config.dense_key)


def _training(name: str, steps: int, detail: str = "", networks: int = 1, stage: str = "") -> Part:
    return Part(name, Cost(steps, steps * networks, steps * networks), detail, stage)


def _words(method: Method, voters: int) -> str:
    return f"{voters} voters, arbiter {getattr(method.arbiter, 'name', '')}" if voters > 1 else "1 voter"


def _scoring(method: Method, update: Update, voters: int, networks: int) -> Cost:
    """Return the passes of an update: scores in each round, or those to drop and to grow by."""
    scorers: list[tuple[Scorer | None, int]] = [(method.score, method.rounds)]
    if update.regrow is not None:
        scorers = [(method.drop, 1), (method.grow if scores_growth(method, update) else None, 1)]
    cost = Cost()
    for scorer, times in scorers:
        if scorer is not None:
            forward, backward = scorer.passes(voters)
            # A task's own loss goes back through its own network only, where each task has one.
            through = networks if method.scope == JOINT else 1
            cost += Cost(0, forward * times * networks, backward * times * through)
    return cost


def keep_cost(folder: Path, part: str, cost: Cost) -> None:
    """Write down in a folder what a part of its work has cost. Raises StoreError."""
    write_json(folder / COST, {**(read_json(folder / COST) or {}), part: dataclasses.asdict(cost)})


def kept_cost(folder: Path) -> Cost:
    """Return what the work in a folder, and in the folders of its rounds, has cost. Raises StoreError."""
    files = [folder / COST, *sorted(folder.glob(f"*/{COST}"))]
    return sum((cost for file in files for cost in _read(file)), Cost())


def _read(file: Path) -> list[Cost]:
    """Return the costs that a file holds. Raises StoreError where it holds something else."""
    kept = read_json(file) or {}
    try:
        costs = [Cost(**part) for part in kept.values()]
        sum(costs, Cost())
    except (AttributeError, TypeError) as error:
        raise StoreError(
            f"{file} does not hold costs: {error}. Move it away; what it held then counts as none."
        ) from error
    return costs


LINUX = platform.system() == "Linux"


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure anew the most memory held at once, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif LINUX:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float:
    """Return the most memory, in MB, held at once on `device`; of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if LINUX:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS
