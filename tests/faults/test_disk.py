"""Disks: one that is full, read-only or out of files stops a run with one line, and what is stored stays good."""

import contextlib
import os
import re
import subprocess

import pytest
from results import contents, damaged, finish, registry, request

from mtlprune_bench.commands import run_cli
from mtlprune_bench.errors import StoreError

ROOM = "size=16m,nr_inodes=4k"
ADVICE = "Free some space|[Cc]hoose another folder"


@pytest.fixture(scope="module")
def plugins():
    return registry()


class Disk:
    """A small disk in a folder, made anew by each `make`, with options of tmpfs."""

    def __init__(self, folder):
        self.folder = folder

    def make(self, options):
        self.remove()
        self._mount(options)

    def change(self, options):
        self._mount(f"remount,{options}")

    def remove(self):
        if os.path.ismount(self.folder):
            subprocess.run(["umount", self.folder], check=True)

    def _mount(self, options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", self.folder]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode:
            pytest.skip(f"no small disk can be made here: {answer.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    disk.folder.mkdir()
    yield disk
    disk.remove()


@pytest.fixture(scope="module")
def whole(plugins, tmp_path_factory):
    """Return what a run with a dense training leaves on a disk with room, and how much that is in kB and files."""
    store = tmp_path_factory.mktemp("whole") / "runs"
    finish(store, plugins, request("magnitude"))
    paths = list(store.rglob("*"))
    return contents(store), sum(-(-path.stat().st_size // 4096) * 4 for path in paths), len(paths)


def starve(disk, plugins, whole, options):
    """Let a run meet the end of a disk with `options`, and go on with more room; return whether it met it."""
    disk.make(options)
    store, said = disk.folder / "runs", ""
    try:
        finish(store, plugins, request("magnitude"))
    except StoreError as error:
        said = str(error)
    assert re.fullmatch(f"Cannot write .*({ADVICE}).*|", said), "one line, with what to do"
    assert not list(store.rglob("*.part")), "nothing half written is left"
    assert damaged(store) == []
    disk.change(ROOM)
    finish(store, plugins, request("magnitude"))
    assert contents(store) == whole[0]
    return bool(said)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_full_disk_loses_nothing(disk, plugins, whole, share):
    assert starve(disk, plugins, whole, f"size={round(whole[1] * share)}k")


def test_a_disk_without_room_for_more_files_loses_nothing(disk, plugins, whole):
    assert starve(disk, plugins, whole, f"size=16m,nr_inodes={whole[2] // 2}")


@pytest.mark.faults
def test_disks_that_end_anywhere_lose_nothing(disk, plugins, whole, capsys):
    met = 0
    for size in range(8, whole[1] + 40, 8):
        met += starve(disk, plugins, whole, f"size={size}k")
    with capsys.disabled():
        print(f"\ndisks: {met} that were full")
    assert met >= 10


def test_a_read_only_store_is_said_at_once_and_can_still_be_read(disk, plugins, whole, capsys):
    disk.make(ROOM)
    store = disk.folder / "runs"
    finish(store, plugins, request("magnitude"))
    disk.change("ro")
    with contextlib.ExitStack() as stack:
        stack.callback(disk.change, "rw")
        for asked in (request("magnitude"), request("snip")):
            with pytest.raises(StoreError, match=f"(?s)Cannot write.*Read-only file system.*({ADVICE})"):
                finish(store, plugins, asked)
        for command in (["table"], ["show", "magnitude"], ["store", "check"], ["gc"]):
            assert run_cli([*command, "--store", str(store)]) == 0, capsys.readouterr()
        # A repair finds nothing to do, but may not even look where it cannot keep others away.
        assert run_cli(["store", "repair", "--store", str(store)]) == 1
    said = capsys.readouterr()
    assert "magnitude" in said.out
    assert "Traceback" not in said.err
    assert contents(store) == whole[0]
