"""Soak: hundreds of tiny runs with workers that are killed now and then leave every row once, and nothing else."""

import random
import tempfile
from multiprocessing import resource_tracker
from pathlib import Path

import psutil
import pytest
from children import workers_of

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs import leftovers as leftovers_module
from mtlprune_bench.runs.leftovers import leftovers, remove
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store

PLUGIN = str(Path(__file__).parents[1] / "toy_plugin.py")
SETTINGS = {"train": {"steps": 2}, "engine": {"checkpoint_seconds": 0, "device": "cpu"}}
IDENTITY = ["run", "split", "task", "component", "metric"]
GROWTH = 30e6
"""Bytes that the parent may have more in the end than after a tenth of the runs."""


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Return a store, and a folder for temporary files, of this process and of those that it starts."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return Store(tmp_path / "runs"), temporary


def soak(store, count, kills):
    """Carry out `count` runs, kill `kills` of the workers, if any, meanwhile, and run what has failed again.

    Return how many were killed, how many outcomes were failures, and the parent's memory on the way, in bytes.
    """
    registry, rng, me = load_registry([PLUGIN]), random.Random(count), psutil.Process()
    settings = {**SETTINGS, "runner": {"workers": 2 if kills else 1}}
    requests = [
        Request(method="random", dataset="toy", sparsity=sparsity, seed=seed, settings=settings)
        for seed in range(count // 2)
        for sparsity in (0.5, 0.9)
    ]
    deadly = set(rng.sample(range(1, count * 3 // 4), kills))
    killed, failed, seen, memory = 0, 0, 0, []
    for _ in range(kills + 1):
        bad = 0
        for outcome in run_all(requests, store, registry, notify=lambda text: None):
            bad += not outcome.good
            seen += 1
            memory.append(me.memory_info().rss)
            if seen in deadly and (workers := workers_of(me)):
                rng.choice(workers).kill()
                killed += 1
        failed += bad
        if not bad:
            return killed, failed, memory
    raise AssertionError("there are more failures than kills")


def open_files():
    """Return how many files, pipes and sockets this process has open."""
    return psutil.Process().num_fds()


def check(store, temporary, count, before):
    """Raise AssertionError unless all rows are there once, and nothing that is temporary; return the rows."""
    rows = store.rows()
    assert rows["run"].nunique() == count
    assert set(rows["status"]) == {"finished"}
    assert not rows.duplicated(IDENTITY).any()
    assert len(set(rows.groupby("run").size())) == 1
    assert not workers_of(psutil.Process())
    assert open_files() <= before
    assert [path for path in temporary.rglob("*") if path.is_file()] == []
    for leftover in leftovers(store)[0]:
        assert remove(leftover), leftover
    assert [*store.folder.rglob("*.part"), *store.folder.rglob("checkpoint.*")] == []
    return len(rows)


def run(places, monkeypatch, count, kills):
    store, temporary = places
    monkeypatch.setattr(leftovers_module, "HOUR", 0.0)
    resource_tracker.ensure_running()  # Python's own, which stays when workers have gone
    before = open_files()
    killed, failed, memory = soak(store, count, kills)
    assert failed <= killed == kills
    return killed, failed, memory, check(store, temporary, count, before)


def test_a_suite_has_every_row_once_and_leaves_nothing(places, monkeypatch):
    run(places, monkeypatch, count=30, kills=0)  # of killed workers there is more in test_kills.py


@pytest.mark.faults
def test_500_runs_whose_workers_are_killed_grow_nothing_and_leave_nothing(places, monkeypatch, capsys):
    killed, failed, memory, rows = run(places, monkeypatch, count=500, kills=12)
    grown = memory[-1] - memory[len(memory) // 10]
    with capsys.disabled():
        print(
            f"\nsoak: 500 runs, {rows} rows, {killed} workers killed, {failed} runs begun again; the parent has "
            f"{memory[-1] / 1e6:.0f} MB, {grown / 1e6:+.1f} MB since a tenth of the runs"
        )
    assert grown < GROWTH
