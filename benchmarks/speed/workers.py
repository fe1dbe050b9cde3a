"""The time of a suite with one worker, with two, and by Ray on as many processors as there are, side by side.

    python -m benchmarks.speed.workers [--suite benchmarks/quick.toml] [--rounds 1] [--ways "1 worker" ...]

Each way runs the whole suite into a new store by the command line, as a user would; seconds are of the wall
clock, so the machine should have nothing else to do. At the end the rows of all ways are compared.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from mtlprune_bench.store import Store

WAYS = {
    "1 worker": ("--workers", "1"),
    "2 workers": ("--workers", "2"),
    "ray": ("--runner", "ray"),
}
MACHINE = ("seconds", "peak_memory")
"""The metrics that differ from one execution to the next."""


def execute(suite: Path, store: Path, options: tuple[str, ...]) -> float:
    """Run `suite` into `store` and return the seconds that it took."""
    program = str(Path(__file__).parents[2] / "cli.py")
    command = [sys.executable, program, "suite", "run", str(suite), "--store", str(store), *options]
    since = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - since


def rows_of(store: Path) -> pd.DataFrame:
    """Return the rows that have to be the same in every way, in one order."""
    rows = Store(store).rows()
    return rows[~rows["metric"].isin(MACHINE)].sort_values(["run", "split", "task", "component", "metric"])


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", type=Path, default=Path("benchmarks/quick.toml"), help="the suite to run")
    parser.add_argument("--rounds", type=int, default=1, help="how often each way is taken, in turns")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="what to measure")
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in asked.ways}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(asked.rounds):
            for way in asked.ways:
                seconds[way].append(execute(asked.suite, Path(scratch, f"{way} {number}"), WAYS[way]))
        stores = sorted(Path(scratch).iterdir())
        first, *others = map(rows_of, stores)
        largest = [
            (other["value"].to_numpy() - first["value"].to_numpy()) / first["value"].abs().clip(lower=1).to_numpy()
            for other in others
        ]
        print("| way | seconds | ratio |\n|---|---:|---:|")
        base = statistics.median(seconds[asked.ways[0]])
        for way, times in seconds.items():
            print(f"| {way} | {statistics.median(times):.0f} | {statistics.median(times) / base:.2f} |")
        print(f"\n{len(first)} rows; largest relative difference of a value between two ways: ", end="")
        print(f"{max((abs(part).max() for part in largest), default=0.0):.2g}")


if __name__ == "__main__":
    main()
