"""Files: written whole or not at all, moved aside and never overwritten, and locked between processes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from mtlprune_bench.errors import StoreError
from mtlprune_bench.files import checksum, discard, locked, set_aside, write_atomic, write_text


def full(path):
    """Write half of it, then fail as a full disk does."""
    path.write_bytes(b"hal")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results"
    path.write_text("old")
    with pytest.raises(StoreError, match=rf"Cannot write {path}: No space left on device. Free some space"):
        write_atomic(path, full)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_stops_a_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    def stopped(path):
        path.write_text("half")
        raise error

    write_text(tmp_path / "results", "old")
    with pytest.raises(error):
        write_atomic(tmp_path / "results", stopped)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_text_is_written_into_folders_that_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "text", "ümlaut\n")
    assert (tmp_path / "a/b/text").read_bytes() == "ümlaut\n".encode()
    write_text(tmp_path / "a" / "b" / "text", "")
    assert (tmp_path / "a/b/text").read_bytes() == b""


def test_a_folder_cannot_be_overwritten_by_a_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError, match=r"Cannot write .*taken: Is a directory"):
        write_text(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_files_set_aside_are_numbered_and_never_replaced(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "file").write_text(f"damaged {number}")
        assert set_aside(tmp_path / "file") == tmp_path / f"file.damaged-{number}"
    (tmp_path / "file").mkdir()
    assert set_aside(tmp_path / "file").name == "file.damaged-4"
    texts = sorted(path.read_text() for path in tmp_path.iterdir() if path.is_file())
    assert texts == ["damaged 1", "damaged 2", "damaged 3"]


def test_a_discarded_file_is_warned_of_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("?")
    with pytest.warns(UserWarning, match=r"file is damaged \(too short\); it is kept as file.damaged-1"):
        discard(tmp_path / "file", ValueError("too short"))
    assert not (tmp_path / "file").exists()


def test_a_checksum_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert checksum(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


HOLD = """
import sys
from pathlib import Path
from mtlprune_bench.files import locked
with locked(Path(sys.argv[1]), lambda owner: print("waits for", owner, flush=True)):
    print("has it", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold(tmp_path):
    """Return a function that starts a process which holds the lock until it gets a line; all end with the test."""
    started = []

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / ".lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_says_who_it_waits_for_and_then_gets_the_lock(hold):
    first = hold()
    assert first.stdout.readline() == "has it\n"
    second = hold()
    assert second.stdout.readline() == f"waits for {first.pid}\n"
    first.communicate("go on\n")
    assert second.stdout.readline() == "has it\n"


def test_the_lock_of_a_killed_process_is_free(hold, tmp_path):
    holder = hold()
    assert holder.stdout.readline() == "has it\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    waited = []
    began = time.monotonic()
    with locked(tmp_path / ".lock", waited.append):
        assert (tmp_path / ".lock.owner").read_text() == str(os.getpid())
    assert waited == []
    assert time.monotonic() - began < 1


def test_a_lock_is_given_back_where_the_work_fails(tmp_path):
    path = tmp_path / "made" / ".lock"
    with pytest.raises(ZeroDivisionError), locked(path, print):
        raise ZeroDivisionError
    other = filelock.FileLock(path)
    other.acquire(timeout=0)
    assert other.is_locked


def test_an_error_of_the_work_is_not_taken_for_one_of_the_lock(tmp_path):
    with pytest.raises(FileNotFoundError), locked(tmp_path / ".lock", print):
        (tmp_path / "missing").read_text()


def test_a_lock_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"Cannot write in .*file/run: Not a directory. Choose another folder"):
        locked(tmp_path / "file" / "run" / ".lock", print).__enter__()
