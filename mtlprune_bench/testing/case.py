"""A method under test: its runs, what its scorers look at, and what they may not change."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pickle
import random
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pluggy
import torch
from torch import Tensor, nn

from mtlprune_bench.host import hookspecs
from mtlprune_bench.host.hookspecs import PROJECT, hookimpl
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.pruning.method import JOINT, PER_TASK, Method, Scorer
from mtlprune_bench.pruning.prune import voters_of
from mtlprune_bench.pruning.scorers import Scoring
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.run import execute
from mtlprune_bench.runs.stages import Stages
from mtlprune_bench.runs.suite import prepare_all
from mtlprune_bench.store import FINISHED, Row, Store
from mtlprune_bench.tensors import NamedTensors
from mtlprune_bench.testing.tiny import TINY, TinyNetwork
from mtlprune_bench.training.checkpoint import MASKS, WEIGHTS, load_masks, load_tensors

Settings = Mapping[str, Mapping[str, Any]]

ASKED = 0.6
SPARSITIES = (0.0, ASKED, 0.93)
"""The sparsities that check_sparsity and check_plan ask for; the other checks ask for ASKED."""

VARYING = ("seconds", "peak_memory")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """What a run has left in its store."""

    stages: Stages
    rows: list[Row]

    @property
    def folder(self) -> Path:
        """Return the folder of its final network: a dense one is that of the shared training."""
        dense = isinstance(self.stages.config.method, Method) and not self.stages.experiment.plan
        return self.stages.dense_folder() if dense else self.stages.folder

    @property
    def masks(self) -> dict[str, Tensor]:
        """Return its final masks; none where it is dense."""
        return load_masks(self.folder / MASKS) or {}

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return its final weights and buffers."""
        return (load_tensors(self.folder / WEIGHTS) or ({}, {}))[0]

    def value(self, metric: str, component: str = "") -> float:
        """Return the value of its only row of `metric` and `component`."""
        (found,) = (row["value"] for row in self.rows if (row["metric"], row["component"]) == (metric, component))
        return float(found)

    def difference(self, other: Outcome) -> str:
        """Return what differs in `other`, to the bit, beside time and memory; "" for nothing."""
        for name, what in ((MASKS, "masks"), (WEIGHTS, "weights")):
            if (self.folder / name).read_bytes() != (other.folder / name).read_bytes():
                return what
        for one, two in zip(self.rows, other.rows, strict=True):
            if one["metric"] not in VARYING and repr(one) != repr(two):
                return f"rows ({one['metric']} is {one['value']}, then {two['value']})"
        return ""


def watched_by(registry: Registry, *plugins: object) -> Registry:
    """Return the same registry with no observers but those of `plugins`."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    for plugin in plugins:
        manager.register(plugin)
    return dataclasses.replace(registry, manager=manager)


@dataclass(frozen=True)
class Case:
    """A method under test; `value` is what it stands for, where that is no method itself."""

    name: str
    registry: Registry
    folder: Path
    settings: Settings
    value: Any = None

    def stages(self, store: Path, asked: float = ASKED, seed: int = 0) -> Stages:
        """Return the stages of a run that has not begun."""
        request = Request(method=self.name, dataset=TINY, sparsity=asked, seed=seed, settings=self.settings)
        (experiment,) = prepare_all([request], self.registry, notify=lambda text: None)
        return Stages(experiment, Store(store), self.registry, Engine(device="cpu"), CPU)

    def run(self, store: Path, asked: float = ASKED, seed: int = 0, checkpoint_seconds: float = 60.0) -> Outcome:
        """Return a finished run; it is carried out unless `store` has it."""
        stages = self.stages(store, asked, seed)
        engine = Engine(device="cpu", checkpoint_seconds=checkpoint_seconds)
        with strange_generators():
            rows = execute(stages.experiment, Store(store), self.registry, engine)
        if rows[0]["status"] != FINISHED:
            log = stages.folder / "error.log"
            trace = f"Its traceback:\n{log.read_text()}" if log.exists() else "Try other settings."
            raise AssertionError(f"fails at sparsity {asked}: {rows[0]['reason']} {trace}")
        return Outcome(stages, rows)

    def shared(self, asked: float = ASKED, seed: int = 0) -> Outcome:
        """Return a run that several checks look at."""
        return self.run(self.folder / "runs", asked, seed)

    @contextlib.contextmanager
    def store(self) -> Iterator[Path]:
        """Give a new folder, for as long as the context lasts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def watched(self, told: Callable[..., None]) -> Iterator[None]:
        """Let `told(event, *facts)` observe runs; facts are dicts."""
        plugin = SimpleNamespace(
            run_started=hookimpl(lambda: told("run_started")),
            step_finished=hookimpl(lambda losses: told("step_finished", losses)),
            masks_updated=hookimpl(lambda before, after: told("masks_updated", before, after)),
            model_evaluated=hookimpl(lambda rows: told("model_evaluated", *rows)),
            run_finished=hookimpl(lambda rows: told("run_finished", *rows)),
        )
        self.registry.manager.register(plugin, "contract observer")
        try:
            yield
        finally:
            self.registry.manager.unregister(name="contract observer")

    @cached_property
    def axes(self) -> dict[str, Scorer]:
        """Return the scorers of the method, by the axis of each."""
        method = pruning(self.stages(self.folder))
        names = () if method is None else ("score",) if method.grow is None else ("score", "drop", "grow")
        return {name: getattr(method, name) for name in names}

    def scorings(
        self, scopes: Sequence[str] = (JOINT, PER_TASK), sparser: Sequence[int] = (1, 10)
    ) -> Iterator[tuple[str, Scorer, Scoring]]:
        """Yield the method's scorers with the axis of each, and what it scores.

        That is a new network, and one of which a tenth is left; for one voter, and for one a task.
        """
        stages = self.stages(self.folder)
        for axis, left, scope in itertools.product(self.axes, sparser, scopes):
            scoring = scoring_of(stages, scope)
            for weight in scoring.weights.values():
                weight.data.masked_fill_(torch.arange(weight.numel()).view(weight.shape) % left > 0, 0.0)
            yield axis, self.axes[axis], scoring


def pruning(stages: Stages) -> Method | None:
    """Return the method of a run; None where it has no plan, as it prunes nothing or learns its masks."""
    method = stages.config.method
    return method if isinstance(method, Method) and method.prunes else None


def scoring_of(stages: Stages, scope: str) -> Scoring:
    """Return what scorers look at in a new network, with the voters of `scope`."""
    (batch,) = stages.batches(stages.config.recipe, "current", 0, 1)
    scoring = stages.scoring(stages.experiment.build_model(CPU), "score", batch)
    voters = voters_of(scope, stages.experiment.objective.weights, stages.components)
    return dataclasses.replace(scoring, voters=voters)


def seed_generators(number: int) -> None:
    """Seed the global generators of torch, Python and numpy."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


@contextlib.contextmanager
def strange_generators() -> Iterator[None]:
    """Seed the global generators with a number that nobody can know, and put them back in the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_generators(secrets.randbits(32))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def state_of(scoring: Scoring) -> dict[str, object]:
    """Return all that scoring leaves alone, by what it is called."""
    batch = scoring.current
    tensors = [batch.images, *batch.targets.values(), *batch.masks.values()] if batch else []
    state: dict[str, object] = {
        "torch's global generator": plain(torch.get_rng_state()),
        "Python's global generator": random.getstate(),
        "numpy's global generator": pickle.dumps(np.random.get_state()),
        "torch's gradient mode": torch.is_grad_enabled(),
        "the batch trained on": [plain(tensor) for tensor in tensors],
    }
    for name, parameter in scoring.model.named_parameters():
        state[f"parameter '{name}'"] = (id(parameter), parameter.requires_grad, plain(parameter))
        state[f"the gradient of '{name}'"] = None if parameter.grad is None else plain(parameter.grad)
    for name, buffer in scoring.model.named_buffers():
        state[f"buffer '{name}'"] = plain(buffer)
    for name, module in scoring.model.named_modules():
        where = f"'{name}'" if name else "the network"
        state[f"the training flag of {where}"] = module.training
        state[f"the hooks of {where}"] = [*module._forward_hooks, *module._forward_pre_hooks]
    return state


def plain(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return tensor.detach().contiguous().numpy().tobytes()


def equal(one: NamedTensors, two: NamedTensors) -> bool:
    """Return whether both have the same names and tensors."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the forward passes through tiny networks, and the backward passes, while the context lasts."""
    made: Counter[str] = Counter(forward=0, backward=0)

    def count(module: nn.Module, images: object, outputs: object) -> None:
        # What an evaluation takes, to select a checkpoint for example, is not among a run's costs.
        made["forward"] += isinstance(module, TinyNetwork) and not torch.is_inference_mode_enabled()

    def counting(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def call(*tensors: Any, **options: Any) -> Any:
            made["backward"] += 1
            return backward(*tensors, **options)

        return call

    with contextlib.ExitStack() as stack:
        stack.callback(nn.modules.module.register_module_forward_hook(count).remove)
        for name in ("grad", "backward"):
            stack.enter_context(mock.patch.object(torch.autograd, name, counting(getattr(torch.autograd, name))))
        yield made
