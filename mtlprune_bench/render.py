"""Tables as text: terminal, markdown, latex, html, csv."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Callable, Mapping, Sequence

import tabulate
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtlprune_bench.results import DELTA, Cell, Column, Comparison, Line
from mtlprune_bench.store import COSTS, SPARSITY, WHOLE

ARROWS = {True: "↑", False: "↓", None: ""}
MISSING = "–"
COST = "cost"
"""The block of columns with what runs have cost."""

DIGITS = {"fraction": 2, "degree": 2, **dict.fromkeys(COSTS.values(), 0)}
"""Digits behind the point, by unit; 4 for others."""

FAR = 0.005
"""How far a sparsity may be from the one asked for before a note says so."""

NAMES = ("method", "asked %", "pretrained", "seeds")


def caption(comparison: Comparison) -> str:
    """Return what all lines of a comparison have in common, in words."""
    setting = comparison.setting
    data = f"{setting['dataset']}: {setting['data']}"
    if setting["stand_in"]:
        data = f"{setting['dataset']} STAND-IN, not the real data: {setting['data']}"
    return f"{data}; model {setting['model']}; protocol {setting['protocol']}; {setting['recipe']}"


def footnotes(comparison: Comparison) -> list[str]:
    """Return what a reader of the numbers has to know: how they are averaged, and which runs failed."""
    notes = []
    if any(len(line.seeds) > 1 for line in comparison.lines):
        notes.append("Mean ± sample standard deviation over seeds.")
    if any(column.metric == DELTA for column in comparison.columns):
        notes.append("delta: relative improvement over dense, mean over a task's metrics, then over tasks.")
    for line in comparison.lines:
        reached = next((cell for column, cell in line.cells.items() if _whole_sparsity(column)), None)
        if reached is not None and abs(reached.mean - line.sparsity) > FAR:
            notes.append(
                f"{line.method} was asked for a sparsity of {100 * line.sparsity:g} % and reached "
                f"{100 * reached.mean:.2f} %: not to be compared with others at that sparsity."
            )
    notes += [f"{run} failed: {reason}" for run, reason in comparison.failures.items()]
    return notes


def _whole_sparsity(column: Column) -> bool:
    return column.metric == SPARSITY and column.component == WHOLE


def names(line: Line) -> tuple[str, ...]:
    """Return the first cells of a line: method, sparsity asked for, whether pretrained, number of seeds."""
    parts = " ".join(part for part in (line.settings, line.finetune) if part)
    label = f"{line.method} ({parts})" if parts else line.method
    return label, f"{100 * line.sparsity:g}", "yes" if line.pretrained else "no", str(len(line.seeds))


def header(column: Column, separator: str = " ") -> str:
    """Return a column's heading: what it is of, its name, the unit and an arrow to the better side.

    Below each other (`separator` is a line break) the task is left out: the block's title says it.
    """
    of = column.component if column.metric == SPARSITY else column.task or column.split
    of = "" if column.task and separator == "\n" else of
    unit = "%" if column.unit == "fraction" else column.unit
    name = " ".join(part for part in (column.metric, ARROWS[column.higher_is_better]) if part)
    return separator.join(part for part in (of, name, unit) if part)


def number(cell: Cell | None, unit: str) -> str:
    """Return a cell as text: fractions as percentages, "mean ± deviation" where there are several seeds."""
    if cell is None or math.isnan(cell.mean):
        return MISSING
    scale = 100 if unit == "fraction" else 1
    digits = DIGITS.get(unit, 4)
    mean = f"{scale * cell.mean:.{digits}f}"
    if math.isnan(cell.deviation) or (digits == 0 and cell.deviation == 0):
        return mean
    return f"{mean} ± {scale * cell.deviation:.{digits}f}"


def grid(comparison: Comparison, columns: Sequence[Column], separator: str = " ") -> list[list[str]]:
    """Return the heading row, then a row of texts for each line."""
    rows = [[*NAMES, *(header(column, separator) for column in columns)]]
    for line in comparison.lines:
        rows.append([*names(line), *(number(line.cells.get(column), column.unit) for column in columns)])
    return rows


def blocks(comparison: Comparison) -> dict[str, list[Column]]:
    """Return the columns by what they are about, so that each block fits a terminal."""
    parts: dict[str, list[Column]] = {}
    for column in comparison.columns:
        whole = COST if column.metric in COSTS else "all tasks"
        parts.setdefault(SPARSITY if column.metric == SPARSITY else column.task or whole, []).append(column)
    return parts


def terminal(comparison: Comparison) -> str:
    """Return a comparison as a block of columns for each task, one for the whole, for sparsity and for cost."""
    texts = [caption(comparison)]
    for name, columns in blocks(comparison).items():
        rows = grid(comparison, columns, "\n")
        texts.append(f"\n{name}\n" + _tabulate(rows, "rounded_outline"))
    return "\n".join([*texts, *footnotes(comparison)]) + "\n"


def markdown(comparison: Comparison) -> str:
    """Return a comparison as one GitHub table."""
    notes = "\n".join(f"- {note}" for note in footnotes(comparison))
    rows = [[text.replace("|", r"\|") for text in row] for row in grid(comparison, comparison.columns)]
    table = _tabulate(rows, "github")
    return f"**{caption(comparison)}**\n\n{table}\n\n{notes}\n"


def latex(comparison: Comparison) -> str:
    """Return a comparison as a table for the LaTeX packages booktabs and graphicx."""
    rows = grid(comparison, comparison.columns)
    table = _tabulate(rows, "latex_booktabs")
    for sign, command in {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "–": "--"}.items():
        table = table.replace(sign, command)
    notes = " ".join(_escape_latex(note) for note in [caption(comparison) + ".", *footnotes(comparison)])
    return (
        "\\begin{table}\n\\centering\n\\resizebox{\\linewidth}{!}{%\n"
        f"{table}}}\n\\caption{{{notes}}}\n\\end{{table}}\n"
    )


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$"}
    special |= {"{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    return "".join(special.get(letter, letter) for letter in text)


def html(comparison: Comparison) -> str:
    """Return a comparison as an HTML table with its caption; every text is escaped."""
    from html import escape

    table = _tabulate(grid(comparison, comparison.columns), "html")
    title = f"<caption>{escape(caption(comparison))}</caption>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in footnotes(comparison))
    return f"{table.replace('<table>', f'<table>{title}', 1)}\n<ul>{notes}</ul>\n"


def comma_separated(comparison: Comparison) -> str:
    """Return a comparison as CSV: plain numbers in their own units, means and deviations apart."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles = [header(column).replace("%", "fraction") for column in comparison.columns]
    both = [f"{title} {part}" for title in titles for part in ("mean", "std")]
    writer.writerow(
        [*comparison.setting, "method", "settings", "finetune", "pretrained", "sparsity", "seeds", *both]
    )
    for line in comparison.lines:
        facts = [line.method, line.settings, line.finetune, line.pretrained, line.sparsity, len(line.seeds)]
        cells = [line.cells.get(column, Cell(math.nan, math.nan)) for column in comparison.columns]
        numbers = [value for cell in cells for value in (cell.mean, cell.deviation)]
        plain = ["" if math.isnan(value) else repr(float(value)) for value in numbers]
        writer.writerow([*comparison.setting.values(), *facts, *plain])
    return out.getvalue()


def _tabulate(rows: Sequence[Sequence[str]], style: str) -> str:
    return tabulate.tabulate(
        rows[1:],
        headers=rows[0],
        tablefmt=style,
        disable_numparse=True,
        colalign=["left", *["right"] * (len(rows[0]) - 1)] if len(rows) > 1 else None,
    )


def plain(title: str, rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """Return a titled table for the terminal."""
    if not rows:
        return f"{title}: none\n"
    table = Table(box=box.ROUNDED)
    for column, heading in enumerate(headings):
        table.add_column(Text(heading), overflow="fold", no_wrap=column == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    width = shutil.get_terminal_size((200, 0)).columns
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return f"{title}\n{capture.get()}"


def render(comparisons: Sequence[Comparison], style: str) -> str:
    """Return all comparisons in one of FORMATS."""
    return "\n".join(FORMATS[style](comparison) for comparison in comparisons)


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": comma_separated,
    "latex": latex,
    "html": html,
}
