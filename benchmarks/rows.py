"""Add the rows of a store's finished runs to a file of rows, and print the comparison of all in it.

    python -m benchmarks.rows runs benchmarks/results/methods.parquet

The columns are few enough for a page; `mtlbench table` prints them all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from mtlprune_bench.results.comparisons import DELTA, Cell, Column, Comparison, Line, comparisons
from mtlprune_bench.results.render import caption, footnotes, names, number
from mtlprune_bench.store import COLUMNS, FINISHED, SPARSITY, Store

SHOWN = {
    "mIoU %": {"metric": "mean_iou"},
    "pixel %": {"metric": "pixel_accuracy"},
    "angle °": {"metric": "mean_angle"},
    "11.25° %": {"metric": "within_11.25"},
    "Δ %": {"metric": DELTA},
    "trunk %": {"metric": SPARSITY, "component": "shared"},
    "seg %": {"metric": SPARSITY, "component": "segmentation"},
    "normals %": {"metric": SPARSITY, "component": "normals"},
    "steps": {"metric": "steps"},
    "forward": {"metric": "forward"},
    "backward": {"metric": "backward"},
}


def collected(store: Path, file: Path) -> pd.DataFrame:
    """Return the rows of `file` and of the finished runs of `store`, and write them to `file`."""
    frames = [pd.read_parquet(file)] if file.exists() else []
    frames.append(Store(store).rows())
    rows = pd.concat(frames).astype(COLUMNS)
    rows = rows[rows["status"] == FINISHED]
    key = ["run", "split", "task", "component", "metric"]
    rows = rows.drop_duplicates(key, keep="last").sort_values(key).reset_index(drop=True)
    rows.to_parquet(file)
    return rows


def cell(line: Line, wanted: dict[str, str]) -> str:
    """Return the number of the column that has all of `wanted`, as text."""
    found: dict[Column, Cell] = {
        column: value
        for column, value in line.cells.items()
        if all(getattr(column, name) == text for name, text in wanted.items())
    }
    return next((number(value, column.unit) for column, value in found.items()), "–")


def page(comparison: Comparison) -> str:
    """Return a comparison as a markdown table of the columns in SHOWN."""
    head = ["method", "asked %", "seeds", *SHOWN]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for line in comparison.lines:
        method, asked, _, seeds = names(line)
        cells = [cell(line, wanted) for wanted in SHOWN.values()]
        lines.append("| " + " | ".join([method, asked, seeds, *cells]) + " |")
    notes = "\n".join(f"- {note}" for note in footnotes(comparison))
    return f"**{caption(comparison)}**\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


if __name__ == "__main__":
    for comparison in comparisons(collected(Path(sys.argv[1]), Path(sys.argv[2]))):
        print(page(comparison))
