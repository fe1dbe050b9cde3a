"""The Slurm runner: an array for each rank, and what Slurm ends is a failure or goes on where it stopped."""

import os
import signal
import stat
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import submitit

from mtlprune_bench import Job, Outcome, Slot, UsageError
from mtlprune_bench.errors import StoreError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.runners import slurm as plugin
from mtlprune_bench.plugins.runners.slurm import Slurm
from mtlprune_bench.runs.config import override
from mtlprune_bench.runs.costs import Cost
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store, read_rows

TOY = str(Path(__file__).parents[1] / "toy_plugin.py")
SLOT = Slot(threads=1, logged=True)
PATIENCE = 60.0
"""Seconds after which what should happen will not."""

# submitit does not wait for what it cancels.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

FAKE = f"""#!{sys.executable}
import os, pathlib, re, subprocess, sys

name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
if name == "srun":
    os.execv(sys.executable, [sys.executable, *arguments[arguments.index("-u"):]])
if name == "sbatch":
    script = pathlib.Path(arguments[-1]).read_text()
    calls = pathlib.Path(__file__).parent / "calls"
    number = len(calls.read_text().splitlines()) + 1 if calls.exists() else 1
    array = re.search(r"--array=0-([0-9]+)%([0-9]+)", script)
    asked = [re.search(option, script)[0] for option in ("--gpus-per-node=.*", "--account=.*")]
    with calls.open("a") as file:
        print(array[0] if array else "one", *asked, file=file)
    print(f"Submitted batch job {{number}}", flush=True)
    for task in range(int(array[1]) + 1) if array else [None]:
        place = {{"SLURM_JOB_ID": str(number), "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}}
        if array:
            place |= {{"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}}
        place |= {{"SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SUBMITIT_EXECUTOR": "slurm"}}
        quiet = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
        subprocess.Popen(["bash", arguments[-1]], env={{**os.environ, **place}}, start_new_session=True, **quiet)
"""
"""Slurm's programs as far as needed: sbatch starts all jobs of an array at once."""


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
            raise ValueError("a mistake")
        if job.name == "endless" or (job.name == "slow" and len(self.begun("slow")) == 1):
            threading.Event().wait()
        return Outcome(job.name, "finished", f"{[needed.name for needed in before]} {slot}")

    def begun(self, name):
        """Return the processes in which a job has begun."""
        file = self.folder / name
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def stub(tmp_path):
    (tmp_path / "begun").mkdir()
    return Stub(tmp_path / "begun")


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Return the runner with submitit's own processes in place of a cluster."""
    monkeypatch.setattr(plugin, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)  # what died leaves no result to wait for
    # The jobs do not find this file.
    submitit.core.utils.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return Slurm(cluster="local", folder=str(tmp_path / "slurm"), cpus=1)


@pytest.fixture
def fake(local, tmp_path, monkeypatch):
    """Return the runner with programs that are called like Slurm's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("srun", "sbatch", "sacct", "scancel"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return replace(local, cluster="slurm")


def rows(folder):
    return [row for row in read_rows(folder) if row["metric"] not in ("seconds", "peak_memory")]


def test_a_suite_has_the_rows_of_the_local_runner(tmp_path):
    registry = load_registry([TOY])

    def run(store, **runner):
        request = Request(method="toy-finetune", dataset="toy", sparsity=0.8, seed=0, settings={"runner": runner})
        return list(run_all([request], Store(store), registry, notify=lambda text: None))

    there = run(tmp_path / "there", name="slurm", cluster="local", cpus=1, folder=str(tmp_path / "slurm"))
    here = run(tmp_path / "here")
    assert there == here
    assert [outcome.status for outcome in here] == ["finished", "finished"]
    (folder,) = Store(tmp_path / "here").runs()
    assert rows(folder) == rows(tmp_path / "there" / folder.name)


def test_ranks_one_after_the_other_and_a_death_concerns_only_those_who_need_it(local, stub):
    jobs = [job("fine"), job("killed"), job("after", "fine", "made-before"), job("never", "after", "killed")]
    outcomes = list(local(jobs, stub))
    assert {outcomes[0].name, outcomes[1].name} == {"fine", "killed"}
    assert outcomes[2] == Outcome("after", "finished", f"['fine'] {SLOT}")
    assert outcomes[3].reason.startswith("killed: Job ")
    assert not stub.begun("never")
    killed = next(outcome for outcome in outcomes if outcome.name == "killed")
    assert killed.status == "failed"
    log = killed.reason.split("what it printed is in ")[1].split(". Its log")[0]
    assert Path(log).parent == Path(local.folder)
    assert "Starting with" in Path(log.replace(".err", ".out")).read_text()


def test_an_error_that_concerns_all_stops_all(local, stub):
    with pytest.raises(StoreError, match=r"^Cannot write: no space\.$"):
        list(local([job("full"), job("after", "full")], stub))
    assert not stub.begun("after")


def test_to_close_ends_all_that_runs(local, stub):
    outcomes = replace(local, gpus=0)([job("fine"), job("endless"), job("later", "fine")], stub)
    assert next(outcomes) == Outcome("fine", "finished", f"[] {Slot('cpu', threads=1, logged=True)}")
    until(lambda: stub.begun("endless"))
    outcomes.close()
    until(lambda: not psutil.pid_exists(stub.begun("endless")[0]))
    assert not stub.begun("later")


def test_what_is_out_of_time_goes_on(local, stub):
    def signalled():
        until(lambda: stub.begun("slow"))
        os.kill(stub.begun("slow")[0], signal.SIGUSR2)

    watch = threading.Thread(target=signalled)
    watch.start()
    (outcome,) = replace(local, retries=1)([job("slow")], stub)
    watch.join()
    assert outcome == Outcome("slow", "finished", f"[] {SLOT}")
    assert len(stub.begun("slow")) == 2


def test_under_slurm_each_rank_is_one_array(fake, stub, tmp_path):
    runner = override(fake, {"options": "account=vision", "parallel": 1}, "runner")
    outcomes = list(runner([job("a"), job("wrong"), job("b", "a")], replace(stub, devices=2)))
    asked = "--gpus-per-node=2 --account=vision"
    assert (tmp_path / "bin" / "calls").read_text() == f"--array=0-1%1 {asked}\none {asked}\n"
    assert sorted(outcomes[:2], key=lambda outcome: outcome.name) == [
        Outcome("a", "finished", f"[] {SLOT}"),
        Outcome("wrong", "failed", "ValueError: a mistake. Its log is worker.log in the folder of wrong."),
    ]
    assert outcomes[2] == Outcome("b", "finished", f"['a'] {SLOT}")


def test_what_slurm_does_not_take_is_said(fake, stub, tmp_path):
    refusal = "sbatch: error: invalid partition: gpu"
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\necho '{refusal}' >&2; exit 1")
    with pytest.raises(UsageError, match=f"Slurm did not take the jobs: {refusal} .*runner.partition"):
        next(replace(fake, partition="gpu")([job("fine")], stub))


def test_without_slurm_the_error_says_so(local, stub, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"There is no Slurm on this machine.*runner\.cluster=local"):
        next(replace(local, cluster="slurm")([job("fine")], stub))


def test_without_submitit_the_error_says_what_to_install(stub, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"needs submitit: pip install 'mtlprune-bench\[slurm\]'"):
        next(Slurm()([job("fine")], stub))


def test_a_folder_that_cannot_be_written_is_named(local, stub, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"Cannot write in .*file/slurm: .*runner.folder"):
        next(replace(local, folder=str(tmp_path / "file" / "slurm"))([job("fine")], stub))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"minutes": 0}, "runner.minutes is 0; write 1 or more"),
        ({"retries": -1}, "runner.retries is -1"),
        ({"gpus": -1}, "runner.gpus is -1"),
        ({"cpus": 0}, "runner.cpus is 0"),
        ({"memory": "nan"}, "runner.memory is nan"),
        ({"parallel": 0}, "runner.parallel is 0"),
        ({"options": "account"}, "runner.options has 'account'; write NAME=VALUE"),
        ({"cluster": "locl"}, "Did you mean 'local'"),
    ],
)
def test_settings_out_of_range_are_named(settings, problem):
    with pytest.raises(UsageError, match=problem):
        override(Slurm(), settings, "runner")
