"""Summaries of what was measured: a table, JSON, a picture of how costs grow, and the README's section."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from tabulate import tabulate

from benchmarks.speed.measure import GIGABYTE, OURS, Ceilings, Result
from mtlprune_bench.figures.style import COLOURS, MARKERS, STYLE, legend, panels, write
from mtlprune_bench.files import write_text

HEADER = ("case", "size", "beside", "theirs", OURS, "ratio", "target", "floor / ours")
OPENING = "<!-- written by python -m benchmarks.speed --readme -->"
CLOSING = "<!-- end of what is written -->"


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return a row of the table for each side that ours is compared with, or for a case's problem."""
    found = []
    for one in results:
        size = f"{one.size}, GPU" if one.device == "cuda" else one.size
        if one.problem:
            found.append((one.case, size, one.problem, "", "", "", "", ""))
            continue
        ours = one.median(OURS)
        for side in (name for name in one.values if name != OURS):
            target = met(one.ratio(side), one.targets[side]) if side in one.targets else ""
            share = f"{one.floor / ours:.0%}" if one.floor and one.unit == "s" else ""
            values = (amount(one.median(side), one.unit), amount(ours, one.unit), f"{one.ratio(side):.2f}")
            found.append((one.case, size, side, *values, target, share))
        if one.limit:
            reached = "reached" if ours <= one.limit else "missed"
            target = f"< {amount(one.limit, one.unit)} {reached}"
            found.append((one.case, size, "", "", amount(ours, one.unit), "", target, ""))
    return found


def met(ratio: float, target: float) -> str:
    """Return a target, and whether it is reached."""
    return f"{target:.3g} {'reached' if ratio >= target else 'missed'}"


def amount(value: float, unit: str) -> str:
    """Return seconds or megabytes in words."""
    if unit == "MB":
        return f"{value:.0f} MB"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def table(results: Sequence[Result], style: str = "github") -> str:
    """Return the table of all results."""
    return tabulate(rows(results), HEADER, tablefmt=style, disable_numparse=True)


def machine(device: torch.device, ceilings: Ceilings) -> dict[str, Any]:
    """Return what was measured on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ceilings": dataclasses.asdict(ceilings),
    }


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def words(facts: Mapping[str, Any], clock: str) -> str:
    """Return the machine, and how it was measured, in sentences."""
    top = facts["ceilings"]
    memory = facts["memory"] / GIGABYTE
    own = f"{facts['processor']}, {facts['cores']} cores, {memory:.0f} GB, {facts['threads']} threads"
    where = own if facts["device"] == "cpu" else f"{facts['device']} beside {own}"
    load = f"; the load was {facts['load']:.1f} at the start" if facts["load"] is not None else ""
    return (
        f"Medians of {clock} on {where}{load}. Python {facts['python']}, torch {facts['torch']}. Matrix products "
        f"reach {top['flops'] / 1e9:.0f} GFLOP/s ({top['half'] / 1e9:.0f} in bf16) and copies "
        f"{top['moved'] / 1e9:.0f} GB/s; a floor is the time that operations, or bytes, take at these speeds."
    )


def save(path: Path, results: Sequence[Result], grown: Mapping[str, Any], facts: Sequence[Any]) -> None:
    """Write all repetitions of everything to `path`, as JSON; `facts` are of each device."""
    content = {
        "devices": facts,
        "cases": [described(one) for one in results],
        "growth": {title: [described(one) for one in found] for title, found in grown.items()},
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def described(result: Result) -> dict[str, Any]:
    """Return a result with its ratios, and the speeds that ours reached."""
    facts = dataclasses.asdict(result)
    if result.problem:
        return facts
    ratios = {side: result.ratio(side) for side in result.values if side != OURS}
    ours = result.median(OURS)
    speeds = {"flops": result.flops / ours, "moved": result.moved / ours} if result.unit == "s" else {}
    return {**facts, "ratios": ratios, "a second": speeds}


def draw(grown: Sequence[tuple[str, str, Sequence[float], Sequence[Result]]], path: Path) -> None:
    """Draw each series (title, what grows, its sizes, what was measured): each side's cost over size."""
    import matplotlib
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(grown), "Costs as sizes grow: medians.", False)
        for axis, (title, what, places, found) in zip(axes, grown, strict=True):
            unit = found[0].unit
            axis.set(title=title, xlabel=what, ylabel="" if unit == "s" else unit, xscale="log", yscale="log")
            axis.set_xticks(places, [EngFormatter()(float(f"{place:.3g}")) for place in places])
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(EngFormatter(unit if unit == "s" else ""))
            for side in (axis.xaxis, axis.yaxis):
                side.set_minor_locator(NullLocator())
            sound = [(place, one) for place, one in zip(places, found, strict=True) if not one.problem]
            sides = list(dict.fromkeys(side for _, one in sound for side in one.values))
            for side in sides:
                values = [one.median(side) for _, one in sound]
                look = (OURS, "released").index(side) if side in (OURS, "released") else 2
                axis.plot(
                    [place for place, _ in sound], values, label=side, color=COLOURS[look], marker=MARKERS[look]
                )
        legend(figure, axes)
    write([figure], path)


def write_readme(readme: Path, text: str) -> None:
    """Put `text` between the two markers of `readme`. Raises ValueError where they are not there."""
    whole = readme.read_text()
    before, opened, rest = whole.partition(OPENING)
    _, closed, after = rest.partition(CLOSING)
    if not opened or not closed:
        raise ValueError(f"{readme} has no section between '{OPENING}' and '{CLOSING}'.")
    write_text(readme, f"{before}{OPENING}\n\n{text}\n\n{CLOSING}{after}")
