"""The engine beside a straightforward implementation and libraries, in one run, after checking that they agree.

    python -m benchmarks.speed [--only NAME ...] [--quick] [--repeat 5] [--output FOLDER] [--readme]

Prints a table of ratios, and writes it with all repetitions and a picture of how costs grow. A case whose sides
disagree, or that does not fit in memory, says so in the place of a ratio.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.speed import growth, loading, pruning, training
from benchmarks.speed.measure import Asked, Case, Ceilings, Result, ceilings_of, measure_alone
from benchmarks.speed.summary import draw, machine, save, table, words, write_readme
from mtlprune_bench.files import write_text

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}
HERE = Path(__file__).parent
QUICK_SECONDS, SECONDS = 2.0, 15.0


def cases(quick: bool, only: Sequence[str]) -> list[Case]:
    """Return the cases asked for. Ends with an error where a name is not known."""
    every = [*pruning.cases(), *training.cases(), *loading.cases()]
    unknown = set(only) - {case.name for case in every}
    if unknown:
        known = ", ".join(dict.fromkeys(case.name for case in every))
        sys.exit(f"There is no case {', '.join(sorted(unknown))}. Known are: {known}.")
    return [case for case in every if case.quick == quick and (not only or case.name in only)]


def run(chosen: Sequence[Case], device: torch.device, asked: Asked, ceilings: Ceilings) -> list[Result]:
    """Measure cases one after the other, and say so; those that need a GPU are skipped where none is used."""
    results = []
    for case in chosen:
        if case.cuda and device.type != "cuda":
            continue
        print(f"{case.name}: {case.size}", file=sys.stderr, flush=True)
        results.append(measure_alone(case, device, asked, ceilings))
    return results


def grown(device: torch.device, asked: Asked, ceilings: Ceilings, folder: Path) -> dict[str, list[Result]]:
    """Measure all series, draw them in `folder`, and return what was measured by title."""
    found = []
    for one in growth.series():
        print(f"{one.title} over {one.words}", file=sys.stderr, flush=True)
        found.append((one.title, one.words, one.places, growth.grow(one, device, asked, ceilings)))
    draw(found, folder / "growth.svg")
    return {f"{title} over {what}": results for title, what, _, results in found}


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases to measure; default: all")
    parser.add_argument("--quick", action="store_true", help="few and small cases, in about a minute")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each side; medians are reported")
    parser.add_argument("--device", default="", help="cpu or cuda; default: both, where there is a GPU")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="process: where others use the machine")
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; default: its own choice")
    parser.add_argument("--output", type=Path, help="folder for speed.json, table.md and growth.svg")
    parser.add_argument(
        "--readme", action="store_true", help="write the table, and with --output the picture, into the documents"
    )
    return parser.parse_args(given)


def devices(name: str) -> list[torch.device]:
    """Return the devices to measure on. Ends with an error for a GPU that is not there, if it was asked for."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("There is no GPU that torch can use here. Leave --device away to measure on the CPU.")
    if name:
        return [torch.device(name)]
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def main(given: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    asked = arguments(given)
    chosen = cases(asked.quick, asked.only)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.output:
        asked.output.mkdir(parents=True, exist_ok=True)
    how = Asked(asked.repeat, QUICK_SECONDS if asked.quick else SECONDS, CLOCKS[asked.clock])
    results: list[Result] = []
    facts, series = [], {}
    for device in devices(asked.device):
        ceilings = ceilings_of(device)
        facts.append(machine(device, ceilings))
        results += run(chosen, device, how, ceilings)
        if asked.output and device.type == "cpu" and not (asked.quick or asked.only):
            series = grown(device, how, ceilings, asked.output)
    clock = "wall clock" if asked.clock == "wall" else "processor time"
    text = "\n\n".join([table(results), *(words(one, clock) for one in facts)])
    print(text)
    if asked.output:
        save(asked.output / "speed.json", results, series, facts)
        write_text(asked.output / "table.md", text + "\n")
    if asked.readme:
        write_readme(HERE / "README.md", text)
    if asked.readme and series:
        shutil.copy(asked.output / "growth.svg", HERE.parents[1] / "docs" / "growth.svg")
    if any(result.problem for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
