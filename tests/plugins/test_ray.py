"""The Ray runner: what is lost with a process or a node begins again elsewhere, and nothing else notices."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import ray
from ray import cloudpickle
from ray.cluster_utils import Cluster

from mtlprune_bench import Job, Outcome, Slot, UsageError
from mtlprune_bench.errors import StoreError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.runners import ray as plugin
from mtlprune_bench.plugins.runners.ray import Ray
from mtlprune_bench.runs.config import override
from mtlprune_bench.runs.costs import Cost
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store, read_rows

TOY = str(Path(__file__).parents[1] / "toy_plugin.py")
SMALL = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000}
PATIENCE = 60.0
"""Seconds after which what should happen will not."""

STUCK = """
import os, pathlib, threading, ray
from mtlprune_bench import hookimpl

@hookimpl
def step_finished(run, step, losses):
    if step == 20 and ray.is_initialized():
        node = ray.get_runtime_context().get_node_id()
        if node == pathlib.Path(os.environ["MTLBENCH_STUCK"]).read_text():
            (run.folder / "stuck").write_text(run.stage)
            threading.Event().wait()
"""
"""A plugin that stops for ever in the middle of any training on one node."""

# The processes of Ray do not find this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def job(name, *needs):
    request = Request(method="m", dataset="d", sparsity=0.5, seed=0)
    return Job(name=name, kind="run", needs=needs, serves=name, request=request, cost=Cost())


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@dataclass(frozen=True)
class Stub:
    """Does what the name of a job says; each beginning is a line in a file."""

    folder: Path
    devices: int = 1

    def __call__(self, job, before, slot):
        for needed in before:
            if not needed.good:
                return Outcome(job.name, "failed", f"{needed.name}: {needed.reason}")
        with (self.folder / job.name).open("a") as file:
            file.write(f"{os.getpid()}\n")
        if job.name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.name == "full":
            raise StoreError("Cannot write: no space.")
        if job.name == "wrong":
            raise ValueError("a mistake\nof ours")
        if job.name == "endless":
            threading.Event().wait()
        return Outcome(job.name, "finished", f"{[needed.name for needed in before]} {slot}")

    def begun(self, name):
        """Return the processes in which a job has begun."""
        file = self.folder / name
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def stub(tmp_path):
    return Stub(tmp_path)


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster of somebody else, with one node and one processor."""
    cluster = Cluster(initialize_head=True, head_node_args=SMALL)
    yield cluster
    cluster.shutdown()


def rows(folder):
    return [row for row in read_rows(folder) if row["metric"] not in ("seconds", "peak_memory")]


def test_a_suite_that_loses_a_node_has_the_rows_of_an_undisturbed_one(cluster, tmp_path, monkeypatch):
    (tmp_path / "stuck.py").write_text(STUCK)
    monkeypatch.setenv("MTLBENCH_STUCK", str(tmp_path / "node"))
    registry = load_registry([TOY, str(tmp_path / "stuck.py")])
    node = cluster.add_node(**SMALL)
    (tmp_path / "node").write_text(node.node_id)

    def run(store, **runner):
        settings = {"engine": {"checkpoint_seconds": 0.0}, "runner": runner}
        requests = [
            Request(method="toy-finetune", dataset="toy", sparsity=0.8, seed=seed, settings=settings)
            for seed in (0, 1)
        ]
        return run_all(requests, Store(store), registry, notify=lambda text: None)

    outcomes = []
    for outcome in run(tmp_path / "ray", name="ray", address=cluster.address):
        if not outcomes:
            until(lambda: list((tmp_path / "ray").rglob("stuck")))
            cluster.remove_node(node, allow_graceful=False)
        outcomes.append(outcome)
    undisturbed = list(run(tmp_path / "local"))
    key = lambda outcome: outcome.name  # noqa: E731
    assert sorted(outcomes, key=key) == sorted(undisturbed, key=key)
    assert all(outcome.good for outcome in outcomes)
    folders = Store(tmp_path / "local").runs()
    assert len(folders) == 2
    assert all(rows(folder) == rows(tmp_path / "ray" / folder.name) for folder in folders)
    # The job that was lost has made its first 20 steps once.
    histories = (tmp_path / "ray" / "stages").glob("*/history.jsonl")
    assert [len(history.read_text().splitlines()) // 10 for history in histories] == [3, 3]


def test_what_dies_is_tried_again_and_then_a_failure_that_only_those_who_need_it_share(cluster, stub):
    jobs = [
        job("killed", "made-before"),
        job("wrong"),
        job("fine"),
        job("after-killed", "killed"),
        job("after-fine", "fine", "made-before"),
        job("after-both", "after-fine", "after-killed"),
    ]
    outcomes = {outcome.name: outcome for outcome in Ray(address=cluster.address, retries=1)(jobs, stub)}
    assert len(outcomes) == len(jobs)
    slot = Slot(threads=1, logged=True)
    assert outcomes["fine"] == Outcome("fine", "finished", f"[] {slot}")
    assert outcomes["after-fine"] == Outcome("after-fine", "finished", f"['fine'] {slot}")
    assert outcomes["killed"].status == "failed"
    assert outcomes["killed"].reason.startswith("Ray gave it up: The worker died unexpectedly")
    assert outcomes["wrong"].reason.startswith("Ray gave it up: ValueError: a mistake. ")
    assert outcomes["after-killed"] == Outcome("after-killed", "failed", f"killed: {outcomes['killed'].reason}")
    assert outcomes["after-both"].reason.startswith("after-killed: killed: Ray gave it up")
    assert {name: len(stub.begun(name)) for name in outcomes} == {
        "killed": 2,
        "wrong": 1,
        "fine": 1,
        "after-killed": 0,
        "after-fine": 1,
        "after-both": 0,
    }


def test_an_error_that_concerns_all_stops_all(cluster, stub):
    with pytest.raises(StoreError, match=r"^Cannot write: no space\.$"):
        list(Ray(address=cluster.address)([job("full"), job("endless"), job("after", "full")], stub))
    assert not stub.begun("after")


def test_to_close_ends_all_tasks_and_leaves_the_cluster(cluster, stub, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    outcomes = Ray(address="auto", gpus=0)([job("fine"), job("endless"), job("later")], stub)
    assert next(outcomes) == Outcome("fine", "finished", f"[] {Slot('cpu', threads=1, logged=True)}")
    until(lambda: stub.begun("endless"))
    outcomes.close()
    (process,) = stub.begun("endless")
    until(lambda: not psutil.pid_exists(process))
    assert not ray.is_initialized()
    assert not cluster.head_node.dead_processes()
    assert not stub.begun("later")


def test_without_an_address_ray_begins_and_ends_with_the_suite(stub):
    def processes():
        return {child for child in psutil.Process().children(recursive=True) if child.status() != "zombie"}

    before = processes()
    with contextlib.closing(Ray()([job("fine"), job("after", "fine")], stub)) as outcomes:
        assert next(outcomes).good
        assert processes() - before, "those of before may end meanwhile"
        assert [outcome.name for outcome in outcomes] == ["after"]
    until(lambda: processes() <= before)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"gpus": 2},
            r"No node of Ray has 1 CPUs and 2 GPUs for a job; there are: 1 CPUs and 0 GPUs\.",
        ),
        ({"cpus": "3", "gpus": 0.5}, "No node of Ray has 3 CPUs and 0.5 GPUs"),
    ],
)
def test_more_than_any_node_has_is_said_at_once(cluster, stub, settings, problem):
    runner = override(Ray(address=cluster.address), settings, "runner")
    with pytest.raises(UsageError, match=problem):
        next(runner([job("fine")], stub))
    assert not stub.begun("fine")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"cpus": 0}, "runner.cpus is 0"),
        ({"gpus": 1.5}, "runner.gpus is 1.5; write 0, a part of one, or a whole number"),
        ({"gpus": -1}, "runner.gpus is -1"),
        ({"gpus": "nan"}, "runner.gpus is nan"),
        ({"retries": -1}, "runner.retries is -1"),
    ],
)
def test_settings_out_of_range_are_named(settings, problem):
    with pytest.raises(UsageError, match=problem):
        override(Ray(), settings, "runner")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("nonsense", ""),
        ("127.0.0.1:port", "Port could not be cast"),
        ("listening", "it did not take us within 6 seconds"),
    ],
)
def test_an_address_that_does_not_answer_is_said_soon(stub, monkeypatch, address, reason):
    monkeypatch.setattr(plugin, "PATIENCE", 6.0)
    since = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = address.replace("listening", f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(
            UsageError, match=rf"No Ray cluster answers at '{address}': .*{reason}.*ray start --head"
        ):
            next(Ray(address=address)([job("fine")], stub))
    assert time.monotonic() - since < 20
    assert not ray.is_initialized()


def test_without_ray_the_error_says_what_to_install(stub, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs Ray: pip install 'mtlprune-bench\[ray\]'"):
        next(Ray()([job("fine")], stub))
