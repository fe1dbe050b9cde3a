"""Measuring: the sides of a case take turns, after it is known that they come to the same.

A case has the engine's side, `ours`, and others beside it. Each side runs once before the clock starts; the
results are compared, and if they differ, this is reported and nothing is timed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor

from mtlprune_bench.runs.costs import peak_memory, reset_peak_memory

OURS = "ours"
GIGABYTE = 1e9

T = TypeVar("T")


@dataclass(frozen=True)
class Sides:
    """What a case compares: each side's work by name, `ours` among them, and what is wrong with their results.

    `differ(theirs, ours)` says in words in what two results differ, "" where they agree; it is not asked about the
    sides in `other`, which do something else. `check` is what a side does in the place of its work where results
    are compared. `flops` and `moved` are the least number of multiplications and additions (in bf16 if `half`) and
    of bytes to and from memory that the work takes. `close` takes away what it made.
    """

    run: Mapping[str, Callable[[], Any]]
    differ: Callable[[Any, Any], str]
    flops: float = 0.0
    moved: float = 0.0
    half: bool = False
    other: tuple[str, ...] = ()
    check: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison: what it is of, and at what size.

    `needs` is about how many bytes it takes at most, and `targets` how many times as much as ours each other side
    is to take; `limit` is the most that ours may take, 0 for any. `unit` is "s", or "MB" for the most memory over
    that at the start, in a process of its own. With `cuda` it needs a GPU. `quick` ones are few and small.
    """

    name: str
    size: str
    prepare: Callable[[torch.device], Sides]
    needs: float
    targets: Mapping[str, float]
    limit: float = 0.0
    unit: str = "s"
    cuda: bool = False
    quick: bool = False


@dataclass
class Result:
    """What was measured of a case: every repetition of each side, or the `problem` in its place.

    `floor` is the least number of seconds that the work can take at the speeds measured in the same run.
    """

    case: str
    size: str
    unit: str
    targets: Mapping[str, float]
    limit: float
    device: str
    values: dict[str, list[float]] = field(default_factory=dict)
    flops: float = 0.0
    moved: float = 0.0
    floor: float = 0.0
    problem: str = ""

    def median(self, side: str) -> float:
        """Return the median of a side's repetitions."""
        return statistics.median(self.values[side])

    def ratio(self, side: str) -> float:
        """Return how many times as much as ours a side takes."""
        return self.median(side) / self.median(OURS)


@dataclass(frozen=True)
class Asked:
    """How to measure: `repeat` turns, of which three are taken even where they exceed `seconds`, by a clock."""

    repeat: int = 5
    seconds: float = 20.0
    clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True)
class Ceilings:
    """The most that the device reached: operations a second of matrix products, bytes a second of copies."""

    flops: float
    half: float
    moved: float


def measure_alone(case: Case, device: torch.device, asked: Asked, ceilings: Ceilings) -> Result:
    """Return what `measure` does in a new process, which has not the memory that other cases left behind."""
    return alone(measure, case, device, asked, ceilings)


def alone(work: Callable[..., T], *given: Any) -> T:
    """Return what `work` does in a new process, with as many threads as here."""
    context = multiprocessing.get_context("spawn")
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, context, torch.set_num_threads, threads) as pool:
        return pool.submit(work, *given).result()


def measure(case: Case, device: torch.device, asked: Asked, ceilings: Ceilings) -> Result:
    """Return the result of a case: where sides disagree, or memory is too small, the problem."""
    result = Result(case.name, case.size, case.unit, case.targets, case.limit, device.type)
    free = free_memory(device)
    if case.needs > free:
        needed, there = case.needs / GIGABYTE, free / GIGABYTE
        result.problem = f"refused: it needs about {needed:.1f} GB, and {there:.1f} GB are free"
        return result
    sides = case.prepare(device)
    try:
        result.flops, result.moved = sides.flops, sides.moved
        speed = ceilings.half if sides.half else ceilings.flops
        result.floor = max(sides.flops / speed, sides.moved / ceilings.moved)
        result.problem = disagreement(sides)
        if not result.problem and case.unit == "s":
            result.values = take_turns(sides.run, device, asked)
    finally:
        sides.close()
    names = tuple(sides.run)
    del sides
    collect(device)
    if not result.problem and case.unit == "MB":
        result.values = {name: [peak_of(case, name, device)] for name in names}
    return result


def disagreement(sides: Sides) -> str:
    """Return which sides do not come to the same as ours, and in what, "" where all do."""
    found = {name: run() for name, run in {**sides.run, **sides.check}.items()}
    wrong = {
        name: sides.differ(result, found[OURS])
        for name, result in found.items()
        if name != OURS and name not in sides.other
    }
    return "; ".join(f"{name} and {OURS} disagree: {what}" for name, what in wrong.items() if what)


def take_turns(run: Mapping[str, Callable[[], Any]], device: torch.device, asked: Asked) -> dict[str, list[float]]:
    """Return the seconds of each side in each of its turns."""
    values: dict[str, list[float]] = {name: [] for name in run}
    since = time.monotonic()
    for turn in range(asked.repeat):
        if turn >= 3 and time.monotonic() - since > asked.seconds:
            break
        for name, work in run.items():
            values[name].append(seconds_of(work, device, asked.clock))
    return values


def seconds_of(
    work: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return how long `work` takes by `clock`, until the device is done with it."""
    gc.collect()
    if device.type != "cuda":
        since = clock()
        work()
        return clock() - since
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    began.record()
    work()
    ended.record()
    torch.cuda.synchronize(device)
    return float(began.elapsed_time(ended)) / 1000


def peak_of(case: Case, side: str, device: torch.device) -> float:
    """Return the most memory in MB that a side of `case` takes over that at its start, in a new process."""
    return peak_here(case, side, device) if device.type == "cuda" else alone(peak_here, case, side, device)


def peak_here(case: Case, side: str, device: torch.device) -> float:
    """Return the most memory in MB that a side takes over that at its start, in this process."""
    sides = case.prepare(device)
    try:
        collect(device)
        reset_peak_memory(device)
        start = peak_memory(device)
        sides.run[side]()
        return peak_memory(device) - start
    finally:
        sides.close()


def collect(device: torch.device) -> None:
    """Give memory that is not used back."""
    gc.collect()
    # glibc keeps what was freed, so that taking it again would not count.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> float:
    """Return how many bytes of memory are free."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def ceilings_of(device: torch.device) -> Ceilings:
    """Return what the device reaches at best, in products of matrices and in a copy."""
    side = 8192 if device.type == "cuda" else 2048
    whole, half = (matrix_speed(side, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    values = torch.ones(side * side, device=device)
    other = torch.empty_like(values)
    copied = min(seconds_of(lambda: other.copy_(values), device) for _ in range(5))
    return Ceilings(whole, half, 2 * values.nbytes / copied)


def matrix_speed(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of a product of square matrices, in the digits that convolutions have."""
    usual = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    one, other = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    fastest = min(seconds_of(lambda: one @ other, device) for _ in range(5))
    torch.backends.cuda.matmul.allow_tf32 = usual
    return 2 * side**3 / fastest


def masks_differ(allowed: int = 0) -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], str]:
    """Return what says in how many weights two networks' masks differ, if in more than `allowed`."""

    def differ(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
        if theirs.keys() != ours.keys():
            return "masks are of other layers"
        count = sum(int(torch.count_nonzero(theirs[name].bool() ^ ours[name].bool())) for name in ours)
        return f"masks differ in {count} weights" if count > allowed else ""

    return differ


def numbers_differ(tolerance: Mapping[str, float], usual: float) -> Callable[[Any, Any], str]:
    """Return what names the numbers in which two results differ by more than their tolerance."""

    def differ(theirs: Mapping[str, float], ours: Mapping[str, float]) -> str:
        wrong = [
            f"{name} is {theirs[name]:.6g} and {ours[name]:.6g}"
            for name in theirs.keys() & ours.keys()
            if not abs(theirs[name] - ours[name]) <= tolerance.get(name, usual)
        ]
        return ", ".join(sorted(wrong)) if theirs.keys() & ours.keys() else "there is nothing to compare"

    return differ
