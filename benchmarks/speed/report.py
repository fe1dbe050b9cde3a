"""Seconds to write a table and a report of many runs, and to open the report in a browser.

    python -m benchmarks.speed.report [--rows 10000] [--runs 500] [--rounds 3]

The runs are made up: 25 methods at several sparsities with three seeds, each with the rows and files that a run
on two tasks has. Commands are whole processes, as typed. Opening needs Chromium, its driver and selenium, and ends
when the page is drawn.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mtlprune_bench.results.comparisons import COLUMN
from mtlprune_bench.store import COSTS, LOSS, SPARSITY, WHOLE, Row, write_json, write_rows

METHODS, SEEDS = 25, 3
TASKS = {
    "segmentation": ("mean_iou", "pixel_accuracy", "error"),
    "normals": ("mean_angle", "median_angle", "within"),
}
FACTS = {
    "status": "finished",
    "reason": "",
    "settings": "",
    "pretrained": False,
    "dataset": "made-up",
    "data": "made up",
    "stand_in": True,
    "protocol": "standard",
    "model": "net",
    "recipe": "200 steps",
    "finetune": "",
    "step": 200,
}


def measures() -> Iterator[dict[str, object]]:
    """Yield what a run on two tasks measures: losses, metrics, sparsities and costs."""
    kinds = [(LOSS, task, split, "", "nat", False) for split in ("train", "test") for task in ("", *TASKS)]
    kinds += [(name, task, "test", "", "fraction", True) for task, names in TASKS.items() for name in names]
    kinds += [(SPARSITY, "", "", part, "fraction", None) for part in (WHOLE, "shared", *TASKS)]
    kinds += [(cost, "", "", "", unit, False) for cost, unit in COSTS.items()]
    names = ("metric", "task", "split", "component", "unit", "higher_is_better")
    assert set(names) == set(COLUMN), "rows have other columns now"
    yield from (dict(zip(names, kind, strict=True)) for kind in kinds)


def made_up(store: Path, runs: int) -> int:
    """Write `runs` runs to `store`, and return how many rows they have."""
    numbers = random.Random(0)
    written = 0
    sparsities = [0.0, *(0.5 + 0.49 * step / 40 for step in range(40))]
    cells = itertools.product(sparsities, range(METHODS), range(SEEDS))
    wanted = (cell for cell in cells if bool(cell[0]) == bool(cell[1]))  # the first method is dense
    for sparsity, method, seed in itertools.islice(wanted, runs):
        name = f"method-{method}"
        folder = store / f"{name}-{sparsity:g}-s{seed}"
        own = {"run": folder.name, "method": name, "sparsity": sparsity, "seed": seed}
        own |= {"paradigm": ("static", "dynamic", "learned")[method % 3] if sparsity else "baseline"}
        rows: list[Row] = [FACTS | own | measure | {"value": numbers.random()} for measure in measures()]
        written += len(rows)
        write_rows(folder, [row | {"value": sparsity} if row["component"] == WHOLE else row for row in rows])
        settings = {f"setting-{number}": number for number in range(30)}
        write_json(folder / "config.json", {"method": {"name": name}, "seed": seed, "train": settings})
        write_json(folder / "plan.json", {"updates": [{"step": 0, "sparsity": sparsity}], "stages": []})
        session = {"started": "2030-01-01T00:00:00+00:00", "command": ["mtlbench", "run"], "device": "cpu"}
        packages = {f"package-{number}": "1.0" for number in range(20)}
        write_json(folder / "environment.json", [session | {"commit": "0" * 40, "packages": packages}])
    return written


def median(action: Callable[[], object], rounds: int) -> float:
    """Return the median of the wall-clock seconds of `rounds` actions, after one that is not counted."""
    action()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def opened(path: Path, rounds: int) -> float:
    """Return the median of the seconds from asking for a page until it is drawn."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    drawn = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"

    def look() -> None:
        driver.get(path.as_uri())
        driver.execute_async_script(drawn)

    try:
        return median(look, rounds)
    finally:
        driver.quit()


def measure(runs: int, rounds: int, scratch: Path) -> None:
    """Print a row of a markdown table for what is done with a store of `runs` runs."""
    store, page = scratch / f"runs-{runs}", scratch / "report.html"
    rows = made_up(store, runs)
    command = Path(sys.executable).with_name("mtlbench")
    options = ("--store", str(store), "--output")
    ways: dict[str, Callable[[], float]] = {
        "mtlbench table": lambda: median(
            lambda: subprocess.run(
                [command, "table", *options, scratch / "table.txt"], check=True, capture_output=True
            ),
            rounds,
        ),
        "mtlbench report": lambda: median(
            lambda: subprocess.run([command, "report", *options, page], check=True, capture_output=True), rounds
        ),
        "opening the report": lambda: opened(page, rounds),
    }
    for name, seconds in ways.items():
        print(f"| {name} | {runs} | {rows} | {seconds():.2f} |", flush=True)
    print(f"\nThe report has {page.stat().st_size / 1e6:.1f} MB.\n")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10000, help="rows of the first store")
    parser.add_argument("--runs", type=int, default=500, help="runs of the second store")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is done, once more to warm up")
    asked = parser.parse_args()
    print("| what | runs | rows | seconds |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        each = len(list(measures()))
        for runs in (-(-asked.rows // each), asked.runs):
            measure(runs, asked.rounds, Path(scratch))


if __name__ == "__main__":
    main()
