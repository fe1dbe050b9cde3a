"""Launching: the processes of one run begin together, work, and end together, whatever becomes of one of them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

import torch

from mtlprune_bench.errors import MtlbenchError, UsageError
from mtlprune_bench.processes import Processes

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a process waits for another; one that dies is noticed at once, and ends all."""


def check_devices(device: torch.device, count: int) -> None:
    """Raise UsageError where there are no `count` devices of one kind, `device` the first of them."""
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) + count > found:
            number = "1 CUDA device was" if found == 1 else f"{found} CUDA devices were"
            after = f" from {device} on" if device.index else ""
            raise UsageError(f"--devices {count}{after}: {number} found; ask for as many at most.")
    elif count > 1 and count > (found := _processors()):
        raise UsageError(
            f"--devices {count}: on the CPU each takes a processor, and this process may use {found}; ask for as "
            "many at most."
        )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(work: Callable[[str], T], device: torch.device, count: int) -> T:
    """Return what `work(name of its device)` returns in the first of `count` processes, which begin together.

    They run on `count` devices from `device` on, or share the threads of the CPU. `work` is pickled. As soon as
    one ends badly all end, and with this process, too. Raises what the first to fail raised, with its traceback as
    a note, and MtlbenchError where a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="mtlbench-") as name:
        folder = Path(name)
        threads = max(1, torch.get_num_threads() // count)
        arguments = [(work, Processes(index, count), device, threads, folder) for index in range(count)]
        processes = [context.Process(target=_enter, args=own) for own in arguments]
        # Ctrl-C reaches every process of a terminal, but is this one's affair. Python's tracker of resources,
        # which the first process would start, unblocks it.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                for process in processes:
                    process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            running = list(processes)
            while running and not any(process.exitcode for process in processes):
                connection.wait([process.sentinel for process in running])
                running = [process for process in running if process.is_alive()]
            codes = [process.exitcode for process in processes]
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        return _answer(folder, codes)  # type: ignore[no-any-return]


def _answer(folder: Path, codes: Sequence[int | None]) -> Any:
    """Return what the first process returned, or raise the first failure of any."""
    killed = [-code for code in codes if code and code < 0]
    if killed:
        hint = "; perhaps memory ran out" if killed[0] == signal.SIGKILL else ""
        raise MtlbenchError(
            f"One of its {len(codes)} processes was killed by signal {killed[0]} "
            f"({signal.Signals(killed[0]).name}){hint}."
        )
    files = sorted(folder.glob("answer-*"))
    # Nobody else can write there: mkdtemp gives the folder to this user alone.
    answers = [pickle.loads(file.read_bytes()) for file in files]  # nosec B301
    failures = [(when, error) for when, error, _ in answers if error is not None]
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
    if any(codes):
        raise MtlbenchError(
            f"One of its {len(codes)} processes ended with exit code {max(code or 0 for code in codes)}."
        )
    return answers[0][2]


def _enter(
    work: Callable[[str], Any], processes: Processes, device: torch.device, threads: int, folder: Path
) -> None:
    """Take part, in a new process: meet the others, work, and leave behind what came of it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a process that was launched has a parent"
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    error, value = None, None
    try:
        value = work(_meet(processes, device, threads, folder))
    except Exception as raised:
        error = _portable(raised)
    part = folder / f"part-{processes.index}"
    part.write_bytes(pickle.dumps((time.monotonic(), error, value if processes.first else None)))
    part.rename(folder / f"answer-{processes.index}")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # At once: the others' connections break, and nothing that is torn down may wait for them.
    os._exit(1 if error is not None else 0)


def _end_with(parent: int) -> None:
    """End this process with its parent: an orphan would go on writing where nobody holds the lock."""
    connection.wait([parent])
    os._exit(1)


def _portable(error: Exception) -> Exception:
    """Return `error` as it can be sent to another process, with its traceback as a note."""
    try:
        pickle.loads(pickle.dumps(error))  # nosec B301
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note("".join(traceback.format_exception(error)))
    return error


def _meet(processes: Processes, device: torch.device, threads: int, folder: Path) -> str:
    """Wait until all processes are there, and return the name of this one's device."""
    from accelerate import PartialState

    cpu = device.type == "cpu"
    rank, size = str(processes.index), str(processes.count)
    os.environ |= {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if not cpu:
        own = torch.device(device.type, (device.index or 0) + processes.index)
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(own)
        torch.cuda.set_device(own)
    else:
        torch.set_num_threads(threads)
    # A file to meet at, as a port might be taken. Objects travel over the CPU, also between GPUs.
    meeting = {"init_method": f"file://{folder / 'meeting'}", "timeout": PATIENCE}
    backend = "gloo" if cpu else "cpu:gloo,cuda:nccl"
    state = PartialState(cpu=cpu, backend=backend, rank=processes.index, world_size=processes.count, **meeting)
    return "cpu" if cpu else str(state.device)
