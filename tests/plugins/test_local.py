"""The local runner: jobs in their order, at most so many at once, and no process outlives its time."""

import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from children import workers_of

from mtlprune_bench import Job, Outcome, Slot, UsageError
from mtlprune_bench.errors import StoreError
from mtlprune_bench.plugins.runners import local
from mtlprune_bench.plugins.runners.local import Local
from mtlprune_bench.runs.config import override
from mtlprune_bench.runs.costs import Cost
from mtlprune_bench.runs.request import Request

PATIENCE = 60.0
"""Seconds after which what should happen will not."""


def job(name, *needs):
    return Job(name, "run", needs, name, Request(method="m", dataset="d", sparsity=0.5, seed=0), Cost())


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@dataclass(frozen=True)
class Stub:
    """Does what the name of a job says, and writes down in files when, by which process and where."""

    folder: Path
    devices: int = 1

    def __call__(self, job, before, slot):
        (self.folder / f"{job.name}.process").write_text(str(os.getpid()))
        self.note(job.name, "begin", time.monotonic())
        for needed in before:
            if not needed.good:
                return Outcome(job.name, "failed", f"{needed.name}: {needed.reason}")
        self.act(job.name)
        self.note(job.name, "end", time.monotonic())
        return Outcome(job.name, "finished", f"{[needed.name for needed in before]} {slot}")

    def act(self, name):
        if name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif name == "exits":
            os._exit(3)
        elif name == "full":
            raise StoreError("Cannot write: no space.")
        elif name == "endless":
            threading.Event().wait()
        elif name == "left":
            until(lambda: self.begun("right"))
        elif name == "right":
            until(lambda: self.begun("left"))
        elif name == "dies-idle":
            until(lambda: self.begun("witness"))
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif name == "witness":
            until(lambda: self.begun("dies-idle"))
            until(lambda: not psutil.pid_exists(self.process("dies-idle")))

    def note(self, name, what, value):
        whole = self.folder / f"{name}.{what}"
        part = whole.with_suffix(".part")
        part.write_text(str(value))
        part.replace(whole)

    def begun(self, name):
        return (self.folder / f"{name}.begin").exists()

    def process(self, name):
        return int((self.folder / f"{name}.process").read_text())

    def times(self, name):
        return tuple(float((self.folder / f"{name}.{what}").read_text()) for what in ("begin", "end"))


@pytest.fixture
def stub(tmp_path):
    return Stub(tmp_path)


def test_one_worker_is_this_process_and_needs_no_pickling(stub):
    def work(job, before, slot):
        assert not before or before[0].good
        return stub(job, before, slot)

    work.devices = 1
    assert Local().workers == 0
    outcomes = list(Local()([job("a", "made-before"), job("b", "a"), job("c", "a", "b")], work))
    assert outcomes == [
        Outcome("a", "finished", f"[] {Slot()}"),
        Outcome("b", "finished", f"['a'] {Slot()}"),
        Outcome("c", "finished", f"['a', 'b'] {Slot()}"),
    ]
    assert {stub.process(name) for name in "abc"} == {os.getpid()}


def test_in_this_process_one_after_the_other_as_they_are_asked_for(stub):
    def interrupted(job, before, slot):
        if job.name == "b":
            raise KeyboardInterrupt
        return stub(job, before, slot)

    interrupted.devices = 1
    outcomes = Local(workers=1)([job("a"), job("b"), job("c")], interrupted)
    assert next(outcomes).name == "a"
    assert not stub.begun("c")
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert not stub.begun("c")


def test_jobs_side_by_side_in_order_and_a_crash_is_one_failed_outcome(stub):
    jobs = [
        job("killed"),
        job("exits"),
        job("left", "made-before"),
        job("right"),
        job("after-both", "left", "right"),
        job("needs-killed", "right", "killed"),
        job("last"),
    ]
    seen = []
    for outcome in Local(workers=2)(jobs, stub):
        assert (stub.folder / f"{outcome.name}.begin").exists()
        seen.append(outcome)
    outcomes = {outcome.name: outcome for outcome in seen}
    assert len(seen) == len(jobs)
    assert {name for name, outcome in outcomes.items() if not outcome.good} == {"killed", "exits", "needs-killed"}
    reason = "Its process was killed by signal 9 (SIGKILL); perhaps memory ran out."
    assert outcomes["killed"].reason == f"{reason} Its log is worker.log in the folder of killed."
    assert outcomes["exits"].reason.startswith("Its process ended with exit code 3.")
    assert outcomes["needs-killed"].reason == f"killed: {outcomes['killed'].reason}"

    share = Slot(threads=max(1, len(os.sched_getaffinity(0)) // 2), logged=True)
    assert outcomes["left"].reason == f"[] {share}"
    assert outcomes["after-both"].reason == f"['left', 'right'] {share}"
    done = {name: stub.times(name) for name in ("left", "right", "after-both", "last")}
    assert done["after-both"][0] >= max(done["left"][1], done["right"][1])
    for begin, _ in done.values():
        assert sum(first <= begin < last for first, last in done.values()) <= 2
    assert os.getpid() not in {stub.process(one.name) for one in jobs}
    # Processes go on to other jobs; the two that died were replaced.
    assert len({stub.process(one.name) for one in jobs}) <= 4


def test_a_process_that_dies_between_jobs_is_replaced_and_a_full_store_stops_all(stub):
    jobs = [job("dies-idle"), job("witness"), job("b", "witness"), job("endless", "witness"), job("full", "b")]
    outcomes = Local(workers=2)(jobs, stub)
    assert [next(outcomes) for _ in range(3)] == [
        Outcome(
            name, "finished", f"{needs} {Slot(threads=max(1, len(os.sched_getaffinity(0)) // 2), logged=True)}"
        )
        for name, needs in (("dies-idle", []), ("witness", []), ("b", ["witness"]))
    ]
    with pytest.raises(StoreError, match="no space"):
        next(outcomes)
    until(lambda: not any(psutil.pid_exists(stub.process(name)) for name in ("witness", "b", "full")))
    assert list(outcomes) == []


def test_a_process_keeps_to_its_gpu_starts_when_it_is_needed_and_closing_ends_it(stub, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    outcomes = Local()([job("endless"), job("quick"), job("quicker", "quick")], stub)
    assert next(outcomes) == Outcome("quick", "finished", f"[] {Slot('cuda:1', logged=True)}")
    assert next(outcomes) == Outcome("quicker", "finished", f"['quick'] {Slot('cuda:1', logged=True)}")
    assert stub.process("quicker") == stub.process("quick")
    until(lambda: stub.begun("endless"))
    assert {child.pid for child in workers_of(psutil.Process())} == {
        stub.process("endless"),
        stub.process("quick"),
    }
    outcomes.close()
    assert workers_of(psutil.Process()) == []


@pytest.mark.parametrize(
    ("workers", "devices", "each", "expected"),
    [
        (0, 3, 1, [Slot(f"cuda:{number}", logged=True) for number in range(3)]),
        (2, 3, 1, [Slot("cuda:0", logged=True), Slot("cuda:1", logged=True)]),
        (3, 2, 1, [Slot("cuda:0", logged=True), Slot("cuda:1", logged=True), Slot("cuda:0", logged=True)]),
        (2, 1, 1, [Slot("cuda:0", logged=True)] * 2),
        (2, 0, 1, [Slot(threads=3, logged=True)] * 2),
        (9, 0, 1, [Slot(threads=1, logged=True)] * 9),
        (0, 4, 2, [Slot("cuda:0", logged=True), Slot("cuda:2", logged=True)]),
    ],
)
def test_what_each_process_may_use(stub, monkeypatch, workers, devices, each, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setattr(local, "_processors", lambda: 7)
    monkeypatch.setattr(local, "_side_by_side", lambda jobs, processes: processes)
    assert [process.slot for process in Local(workers)([job("a")], replace(stub, devices=each))] == expected


def test_a_number_of_workers_below_zero_is_refused():
    with pytest.raises(UsageError, match=r"runner.workers is -1; write how many"):
        override(Local(), {"workers": "-1"}, "runner")
