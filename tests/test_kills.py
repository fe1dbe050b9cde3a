"""Kills: whatever dies, and whenever, the same command ends with what an undisturbed one has stored."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from children import seconds_of, workers_of

from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store, read_history, read_rows

PLUGINS = [str(Path(__file__).parent / f"{name}_plugin.py") for name in ("toy", "gate")]
METHODS = ("random", "snip", "toy-finetune")
SETTINGS = {"train": {"steps": 36}, "finetune": {"steps": 20}, "engine": {"checkpoint_seconds": 0}}
# Two processors for two processes: one thread each, as in the test's own process.
START = (
    "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2]); os.environ['OMP_NUM_THREADS'] = '1'"
)
COMMAND = [
    *(sys.executable, "-c", f"{START}; from mtlprune_bench.commands import main; main()"),
    *("run", f"--method={','.join(METHODS)}", "--dataset=toy", "--sparsity=0.8"),
    *(f"--plugin={plugin}" for plugin in PLUGINS),
    *(f"--set={part}.{name}={value}" for part, some in SETTINGS.items() for name, value in some.items()),
]
DENSE, SNIP = "toy-finetune: dense training", "snip: training"
"""The trainings that come first, by what they write at the gate."""
PATIENCE = 180.0
"""Seconds after which what should happen will not; to import torch takes many on a busy machine."""


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def finish(store):
    """Give the command in this process, and return the folders of its runs."""
    registry = load_registry(PLUGINS)
    requests = [Request(method=name, dataset="toy", sparsity=0.8, seed=0, settings=SETTINGS) for name in METHODS]
    outcomes = list(run_all(requests, Store(store), registry, notify=lambda text: None))
    assert all(outcome.good for outcome in outcomes), outcomes
    return Store(store).runs()


def contents(folder):
    """Return what is the same on every machine of a run's rows, masks, weights and history."""
    rows = [row for row in read_rows(folder) if row["metric"] not in ("seconds", "peak_memory")]
    files = [(folder / f"{name}.safetensors").read_bytes() for name in ("masks", "weights")]
    return rows, files, list(read_history(folder / "history.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what every run has stored that nothing happened to, by its id."""
    return {folder.name: contents(folder) for folder in finish(tmp_path_factory.mktemp("undisturbed"))}


class Suite:
    """The command as a process of its own, whose trainings wait at the gate."""

    def __init__(self, folder):
        self.store = folder / "store"
        self.gate = folder / "gate"
        self.gate.mkdir(exist_ok=True)
        self.started = []

    def start(self, workers, **environment):
        log = self.gate / f"log-{len(self.started)}"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [*COMMAND, f"--store={self.store}", f"--workers={workers}"],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, "GATE": str(self.gate), **environment},
                start_new_session=True,
            )
        self.started.append(process)
        return process, log

    def process_of(self, training):
        """Return the process that waits at the gate with a training."""
        until((self.gate / training).exists)
        return psutil.Process(int((self.gate / training).read_text()))

    def open(self):
        (self.gate / "open").touch()

    def folder(self, pattern):
        (found,) = self.store.glob(pattern)
        return found


@pytest.fixture
def suite(tmp_path):
    suite = Suite(tmp_path)
    yield suite
    for process in suite.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too, where a test has failed
        process.wait()


def gone(processes):
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_killed_workers_fail_their_jobs_alone_and_the_same_command_makes_them_good(suite, undisturbed):
    process, log = suite.start(workers=2, DEADLY_WRITES="20")
    snip, dense = suite.process_of(SNIP), suite.process_of(DENSE)
    assert {snip.ppid(), dense.ppid()} == {process.pid}
    snip.kill()
    suite.open()
    assert process.wait(PATIENCE) == 1

    killed = "was killed by signal 9 (SIGKILL); perhaps memory ran out. Its log is worker.log in the folder of"
    rows = {folder.name.split("-toy-")[0]: read_rows(folder) for folder in Store(suite.store).runs()}
    assert {name: row[0]["status"] for name, row in rows.items()} == {
        "random": "finished",
        "snip": "failed",
        "toy-finetune": "failed",
    }
    (row,) = rows["snip"]
    assert row["reason"] == f"Its process {killed} {row['run']}."
    # The other one died by itself, between writing a checkpoint and renaming it.
    stage = suite.folder("stages/dense-*-s0-*")
    assert len(list(stage.glob(".checkpoint.*.part"))) == 1
    (row,) = rows["toy-finetune"]
    assert row["reason"] == f"{stage.name}, which it needs, failed: Its process {killed} {stage.name}."
    assert "Traceback" not in log.read_text()

    assert {folder.name: contents(folder) for folder in finish(suite.store)} == undisturbed


def test_workers_end_with_a_killed_parent_and_the_same_command_goes_on(suite, undisturbed):
    process, _ = suite.start(workers=2)
    workers = [suite.process_of(training) for training in (SNIP, DENSE)]
    process.kill()
    process.wait()
    until(lambda: gone(workers))
    assert {folder.name: contents(folder) for folder in finish(suite.store)} == undisturbed


STOPPED = "Error: Stopped. What is stored is kept: give the same command again to go on."


def test_an_interrupt_is_one_line_and_leaves_no_process(suite, undisturbed):
    process, log = suite.start(workers=2)
    workers = [suite.process_of(training) for training in (SNIP, DENSE)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    assert process.wait(PATIENCE) == 130
    assert gone(workers)
    assert log.read_text().strip() == STOPPED
    assert {folder.name: contents(folder) for folder in finish(suite.store)} == undisturbed


def test_an_interrupt_while_workers_start_is_one_line_too(suite):
    process, log = suite.start(workers=2)
    parent = psutil.Process(process.pid)
    until(lambda: any(seconds_of(child) > 0.5 for child in workers_of(parent)))
    workers = workers_of(parent)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert len(workers) == 2
    assert gone(workers)
    assert log.read_text().strip() == STOPPED


def test_two_suites_on_one_store_do_everything_once(suite, undisturbed):
    first, _ = suite.start(workers=2)
    worker = suite.process_of(DENSE)
    second, log = suite.start(workers=1)
    until(lambda: f"Process {worker.pid} is working on dense-" in log.read_text())
    suite.open()
    assert (first.wait(PATIENCE), second.wait(PATIENCE)) == (0, 0)
    assert {folder.name: contents(folder) for folder in Store(suite.store).runs()} == undisturbed
    for training in suite.store.rglob("history.jsonl"):
        steps = SETTINGS["finetune" if "finetune" in training.parent.name else "train"]["steps"]
        assert len(training.read_text().splitlines()) == steps, "nothing is trained twice"


def test_a_full_disk_stops_everything_with_one_line_and_what_is_stored_stays(suite, undisturbed):
    # A limit on the size of files, which workers inherit, fails in the same place as a full disk.
    limit = (6_000, 6_000)
    answer = subprocess.run(
        [*COMMAND, f"--store={suite.store}", "--workers=2"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert answer.stdout == ""
    assert re.fullmatch(
        r"Error: Cannot write .+safetensors: .+ Free some space or choose another folder\.\n", answer.stderr
    )
    assert {folder.name: contents(folder) for folder in finish(suite.store)} == undisturbed
