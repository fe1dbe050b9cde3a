"""Locks: two processes on one run take turns, and what a dead one has locked holds nobody up."""

import os
import time

import pytest
from points import PATIENCE, Child
from results import contents, damaged, finish, registry, request

from mtlprune_bench import hookimpl
from mtlprune_bench.files import is_locked
from mtlprune_bench.runs.leftovers import in_work
from mtlprune_bench.store import LOCK, Store

STEP = 3


@pytest.fixture(scope="module")
def plugins():
    return registry()


@pytest.fixture(scope="module")
def whole(plugins, tmp_path_factory):
    """Return what a run leaves that nothing happened to."""
    store = tmp_path_factory.mktemp("whole")
    finish(store, plugins, request("rigl"))
    return contents(store)


class Gate:
    """An observer that waits at a step until the file `open` is there."""

    def __init__(self, folder):
        self.here, self.open = folder / "here", folder / "open"

    @hookimpl
    def step_finished(self, step):
        if step == STEP:
            self.here.touch()
            until(self.open.exists)


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def waiting(plugins, tmp_path):
    """Return a process that has begun a run and waits in the middle of it, the gate, and the store."""
    store, gate = tmp_path / "runs", Gate(tmp_path)

    def carry_out():
        plugins.manager.register(gate, "gate")
        finish(store, plugins, request("rigl"))

    child = Child(carry_out, tmp_path / "first")
    until(gate.here.exists)
    yield child, gate, store
    child.kill()


def second(plugins, store, folder):
    """Return another process that is asked for the same run; it says what it waits for."""
    return Child(lambda: finish(store, plugins, request("rigl")), folder)


@pytest.mark.filterwarnings("default:Process")
def test_the_second_process_says_who_holds_the_run_and_waits(plugins, whole, waiting, tmp_path):
    first, gate, store = waiting
    other = second(plugins, store, tmp_path / "second")
    until(lambda: f"Process {first.pid} is working on rigl-" in other.said)
    assert not other.has_ended()
    gate.open.touch()
    assert (first.wait().ended, other.wait().ended) == (0, 0), other.said
    assert contents(store) == whole


@pytest.mark.filterwarnings("default:Process")
def test_the_second_process_goes_on_where_the_first_was_killed(plugins, whole, waiting, tmp_path):
    first, _, store = waiting
    other = second(plugins, store, tmp_path / "second")
    until(lambda: "waiting until it ends" in other.said)
    first.kill()
    assert other.wait().ended == 0, other.said
    assert contents(store) == whole


def test_the_lock_of_a_dead_process_is_seen_to_be_stale(plugins, whole, waiting):
    first, _, store = waiting
    (folder,) = Store(store).runs()
    assert in_work(folder)
    first.kill()
    assert (folder / LOCK).exists(), "the file stays; the operating system dropped the lock"
    assert not is_locked(folder / LOCK)
    finish(store, plugins, request("rigl"))  # a warning that it waits would be an error
    assert contents(store) == whole


@pytest.mark.filterwarnings("default:Process")
@pytest.mark.parametrize("owner", [b"", b"\xff\xfe\0", b"9" * 5000])
def test_who_holds_a_run_may_be_illegible(plugins, whole, waiting, tmp_path, owner):
    first, gate, store = waiting
    (folder,) = Store(store).runs()
    (folder / LOCK).with_suffix(".owner").write_bytes(owner)
    other = second(plugins, store, tmp_path / "second")
    until(lambda: "waiting until it ends" in other.said or other.has_ended())
    gate.open.touch()
    assert (first.wait().ended, other.wait().ended) == (0, 0), other.said
    assert contents(store) == whole


@pytest.mark.faults
@pytest.mark.filterwarnings("default:Process")
def test_processes_on_one_run_that_are_killed_one_after_the_other_end_it_together(
    plugins, whole, tmp_path, capsys
):
    killed = 0
    for number in range(10):
        store = tmp_path / f"runs-{number}"
        children = [second(plugins, store, tmp_path / f"{number}-{who}") for who in range(4)]
        for child in children[:3]:
            time.sleep(0.05 * number)
            killed += child.kill().ended != 0
        assert children[3].wait().ended == 0, children[3].said
        assert damaged(store) == []
        assert contents(store) == whole
    with capsys.disabled():
        print(f"\nprocesses on one run: {killed} killed while others waited, {os.cpu_count()} processors")
    assert killed >= 10
