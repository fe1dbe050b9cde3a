"""The machine: a clock that goes backwards, memory that runs out, files of data that vanish in mid-run."""

import dataclasses
import itertools
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from points import Child
from results import contents, damaged, finish, registry, request

from mtlprune_bench import Method, Sample, hookimpl, once, read_npy
from mtlprune_bench.errors import StoreError
from mtlprune_bench.runs.leftovers import leftovers
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store, read_history, read_json, read_rows
from mtlprune_bench.testing import TINY
from mtlprune_bench.training.checkpoint import load_masks, load_tensors


@pytest.fixture(scope="module")
def plugins():
    return registry()


@pytest.fixture(scope="module")
def whole(plugins, tmp_path_factory):
    """Return what a run leaves that nothing happened to."""
    store = tmp_path_factory.mktemp("whole")
    finish(store, plugins, request("rigl"))
    return contents(store)


class Stopped(BaseException):
    """Ends a run as a killed process would."""


class StopAt:
    """An observer that stops the training at a step."""

    def __init__(self, step):
        self.step = step

    @hookimpl
    def step_finished(self, step):
        if step == self.step:
            raise Stopped


def test_a_clock_that_goes_backwards_changes_nothing(plugins, whole, tmp_path, monkeypatch):
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600.0 * next(hours))
    observer = StopAt(4)
    plugins.manager.register(observer, "stop")
    try:
        with pytest.raises(Stopped):
            finish(tmp_path, plugins, request("rigl"))
    finally:
        plugins.manager.unregister(observer)
    half = tmp_path / next(tmp_path.glob("rigl-*")).name / ".masks.safetensors.ab.part"
    half.write_bytes(b"half")  # by a clock that is decades behind, it was written in the future
    assert leftovers(Store(tmp_path)) == ([], []), "what may be being written is left"
    finish(tmp_path, plugins, request("rigl"))
    assert contents(tmp_path) == whole
    assert next(hours) > 0, "the clock was looked at"


@dataclass(frozen=True)
class Greedy:
    """Scores that take more memory than any machine has."""

    name: str = "greedy"

    def passes(self, voters):
        return 0, 0

    def __call__(self, scoring):
        return {voter: {"weight": torch.empty(2**52)} for voter in scoring.voters}


@dataclass(frozen=True)
class GreedyForLists(Greedy):
    """The same, for memory of Python itself."""

    def __call__(self, scoring):
        return [0] * 2**60


@pytest.mark.parametrize("scorer", [Greedy(), GreedyForLists()])
def test_memory_that_runs_out_fails_one_run_alone_and_says_so(plugins, whole, tmp_path, scorer):
    mine = dataclasses.replace(plugins, entries=dict(plugins.entries))
    mine.add("methods", Method(name="greedy", score=scorer, schedule=once()), "test", "test", None)
    asked = [request("greedy"), request("rigl")]
    outcomes = {
        outcome.name.split("-")[0]: outcome
        for outcome in run_all(asked, Store(tmp_path), mine, notify=lambda text: None)
    }
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"greedy": "failed", "rigl": "finished"}
    assert "memory" in outcomes["greedy"].reason.lower()
    assert damaged(tmp_path) == []
    assert {name: value for name, value in contents(tmp_path).items() if name.startswith("rigl")} == whole


@dataclass(frozen=True)
class OnDisk:
    """Samples of the tiny dataset whose images lie in files."""

    samples: object
    folder: Path

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        image = torch.from_numpy(read_npy(self.folder / f"{index}.npy", 3, "u"))
        return Sample(image, sample.labels)


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-7])])
def test_data_that_vanish_in_mid_run_are_named_and_the_run_goes_on_when_they_are_back(
    plugins, whole, tmp_path, harm
):
    tiny = plugins.get("datasets", TINY)
    splits = tiny.open(None)
    for number in range(len(splits.train)):
        np.save(tmp_path / f"{number}.npy", splits.train[number].image.numpy())
    on_disk = dataclasses.replace(splits, train=OnDisk(splits.train, tmp_path))
    mine = dataclasses.replace(plugins, entries=dict(plugins.entries))
    entry = mine.entries["datasets", TINY]
    value = dataclasses.replace(tiny, open=lambda request: on_disk)
    mine.entries["datasets", TINY] = dataclasses.replace(entry, value=value)
    victim = tmp_path / "3.npy"
    data = victim.read_bytes()

    class Harm:
        @hookimpl
        def step_finished(self, step):
            if step == 2:
                harm(victim)

    observer = Harm()
    plugins.manager.register(observer, "harm")
    try:
        (outcome,) = run_all([request("rigl")], Store(tmp_path / "runs"), mine, notify=lambda text: None)
    finally:
        plugins.manager.unregister(observer)
    assert outcome.status == "failed"
    assert f"{victim} cannot be read as a NumPy array" in outcome.reason
    assert damaged(tmp_path / "runs") == []
    victim.write_bytes(data)
    finish(tmp_path / "runs", mine, request("rigl"))
    assert contents(tmp_path / "runs") == whole


def test_files_that_cannot_be_opened_now_are_not_taken_for_damaged(plugins, whole, tmp_path):
    store = tmp_path / "runs"
    finish(store, plugins, request("rigl"))
    (folder,) = Store(store).runs()
    readers = {
        "masks.safetensors": load_masks,
        "weights.safetensors": load_tensors,
        "rows.parquet": lambda path: read_rows(path.parent),
        "config.json": read_json,
        "history.jsonl": lambda path: list(read_history(path)),
    }

    def read():
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # all that may be open is
        for name, reader in readers.items():
            with pytest.raises(StoreError, match=f"Cannot read .*{name}: Too many open files"):
                reader(folder / name)

    child = Child(read, tmp_path / "child").wait()
    assert child.ended == 0, child.said
    assert contents(store) == whole
