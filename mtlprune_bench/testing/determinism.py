"""What repeats on a device: a short run made twice, and once interrupted, and what of the three is identical."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtlprune_bench.host.hookspecs import hookimpl
from mtlprune_bench.host.registry import BUILT_IN, Registry
from mtlprune_bench.pruning.arbiters import OR
from mtlprune_bench.pruning.method import PER_TASK, TRAINED, Method
from mtlprune_bench.pruning.schedules import every
from mtlprune_bench.pruning.scorers import gradient, magnitude, saliency
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.doctor import Finding
from mtlprune_bench.runs.environment import resolve_device
from mtlprune_bench.runs.pipeline import START_MASKS
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.run import execute
from mtlprune_bench.runs.suite import prepare_all
from mtlprune_bench.store import FINISHED, Store, read_history, read_rows
from mtlprune_bench.testing.case import VARYING, strange_generators, watched_by
from mtlprune_bench.testing.tiny import TINY, register_tiny
from mtlprune_bench.training.checkpoint import MASKS, WEIGHTS, load_masks, load_tensors
from mtlprune_bench.training.train import HISTORY

AREA = "determinism"
METHOD = Method(
    name=AREA,
    score=saliency(batches=2),
    scope=PER_TASK,
    arbiter=OR,
    schedule=every(regrow=0.3),
    drop=magnitude(),
    grow=gradient(batches=0),
    grown="zero",
    start=TRAINED,
)
"""A method with a bit of everything: a dense training, scores, masks that change, and a training under them."""

STEPS = {"train": {"steps": 12}, "finetune": {"steps": 12}}
INTERRUPTED = 7
"""The step after which each training is stopped once, in the run that is interrupted."""

ASKED = 0.6
IDENTITY = ("split", "task", "component", "metric")


class Interrupted(BaseException):
    """Stops a run as the end of its process would."""


class Interruption:
    """An observer that stops each training once."""

    def __init__(self) -> None:
        self.met: set[str] = set()

    @hookimpl
    def step_finished(self, run: Any, step: int) -> None:
        """Stop the training whose stage this is, unless it was stopped before."""
        if step == INTERRUPTED and run.stage not in self.met:
            self.met.add(run.stage)
            raise Interrupted


def determinism(registry: Registry, folder: Path, device: str = "auto") -> Iterator[Finding]:
    """Yield what of a short run on `device` is identical when it is repeated, and when it is interrupted.

    The stores of the three runs are made in `folder`. A difference is a problem on a CPU, where everything has
    to repeat to the bit, and a warning elsewhere, where kernels may add up in another order each time.
    """
    found = str(resolve_device(device))
    try:
        first = _made(registry, folder / "first", device)
        again = {
            "made twice": _made(registry, folder / "second", device),
            "interrupted": _made(registry, folder / "interrupted", device, Interruption()),
        }
    except Exception as error:
        advice = "Give the same command with --debug, and look at the versions above."
        yield Finding(AREA, found, "problem", f"{type(error).__name__}: {error}", advice)
        return
    for how, other in again.items():
        for part, value in first.items():
            yield _finding(f"{part}, {how}, {found}", difference(value, other[part]), found == "cpu")


def _finding(subject: str, words: str, exact: bool) -> Finding:
    if not words:
        return Finding(AREA, subject, "ok", "identical to the bit")
    if exact:
        return Finding(AREA, subject, "problem", words, "Numbers do not repeat: report this as a bug, please.")
    return Finding(
        AREA, subject, "warning", words, "Give each comparison several seeds, as numbers repeat roughly."
    )


def _made(
    registry: Registry, folder: Path, device: str, interruption: Interruption | None = None
) -> dict[str, Any]:
    """Return what a run leaves, by what it is; it is taken up again as often as it is interrupted."""
    own = watched_by(dataclasses.replace(registry, entries=dict(registry.entries)), *filter(None, [interruption]))
    register_tiny(own)
    own.add("methods", METHOD, __name__, BUILT_IN, None)
    request = Request(method=METHOD.name, dataset=TINY, sparsity=ASKED, seed=0, settings=STEPS)
    (experiment,) = prepare_all([request], own, lambda text: None)
    rows = None
    while rows is None:
        try:
            with strange_generators():
                rows = execute(experiment, Store(folder), own, Engine(device=device, checkpoint_seconds=0))
        except Interrupted:
            pass
    if rows[0]["status"] != FINISHED:
        raise RuntimeError(rows[0]["reason"])
    config, store = experiment.config, Store(folder)
    return _contents(store.run_folder(config.run_id), store.stage_folder(config.dense_key))


def _contents(run: Path, dense: Path) -> dict[str, Any]:
    """Return what the folders of a run and of its dense training hold, by what it is."""

    def tensors(path: Path) -> dict[str, Tensor]:
        return (load_tensors(path) or ({}, {}))[0]

    history = [entry for folder in (dense, run) for entry in read_history(folder / HISTORY)]
    rows = [row for row in read_rows(run) or () if row["metric"] not in VARYING]
    return {
        "losses of steps": {
            f"{number} {task}": loss
            for number, entry in enumerate(history)
            for task, loss in entry["losses"].items()
        },
        "dense weights": tensors(dense / WEIGHTS),
        "first masks": load_masks(run / START_MASKS) or {},
        "final masks": load_masks(run / MASKS) or {},
        "final weights": tensors(run / WEIGHTS),
        "numbers": {" ".join(row[key] for key in IDENTITY): row["value"] for row in rows},
    }


def difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Return in words how far tensors or numbers of the same names differ, "" where they are equal to the bit."""
    if one.keys() != two.keys() or not one:
        return "they are not of the same things"
    pairs = [(_flat(one[name]), _flat(two[name])) for name in one]
    differing = sum(int((_bits(a) != _bits(b)).any(dim=1).sum()) for a, b in pairs)
    if not differing:
        return ""
    largest = max(float((a.double() - b.double()).abs().nan_to_num().max()) for a, b in pairs)
    return f"{differing} of {sum(a.numel() for a, _ in pairs)} differ, by {largest:.1g} at most"


def _flat(value: Tensor | float) -> Tensor:
    """Return a tensor [n] of at least one number, or a number as one of them."""
    return value.flatten() if isinstance(value, Tensor) else torch.tensor([value], dtype=torch.float64)


def _bits(values: Tensor) -> Tensor:
    """Return the bytes [n, B] of `values` [n], by which zeros of different sign differ too."""
    return values.contiguous().view(torch.uint8).view(values.numel(), -1)
