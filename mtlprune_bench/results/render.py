"""Tables as text: terminal, markdown, latex, html, csv, json."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import tabulate
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtlprune_bench.results.captions import (
    BEST,
    SECOND,
    caption,
    differing,
    footnotes,
    groups,
    header,
    names,
    number,
    places,
)
from mtlprune_bench.results.comparisons import DIFFERENCE, SETTING, Cell, Column, Comparison
from mtlprune_bench.results.views import block

NAMES = ("method", "asked %", "pretrained", "seeds")

Forms = Sequence[Mapping[Column, str]]
"""For each line what its best numbers look like, by column; {} stands for the number."""


def forms(comparison: Comparison, best: str, second: str) -> Forms:
    """Return `best` and `second`, what such numbers look like, where they belong."""
    looks = {BEST: best, SECOND: second}
    return [{column: looks[place] for column, place in own.items()} for own in places(comparison)]


def grid(
    comparison: Comparison, columns: Sequence[Column], separator: str = " ", marks: Forms | None = None
) -> list[list[str]]:
    """Return the heading row, then a row of texts for each line, with the best numbers marked."""
    rows = [[*NAMES, *(header(column, separator) for column in columns)]]
    for line, own in zip(comparison.lines, marks or [{}] * len(comparison.lines), strict=True):
        texts = [
            own.get(column, "{}").format(number(line.cells.get(column), column.unit, line.source == DIFFERENCE))
            for column in columns
        ]
        rows.append([*names(line), *texts])
    return rows


def with_titles(comparison: Comparison, rows: Sequence[list[str]], title: str) -> Iterator[list[str]]:
    """Yield the `rows` of lines, and before each group of lines a row with its `title`; {} stands for its name."""
    for name, row in zip(groups(comparison), rows, strict=True):
        if name:
            yield [title.format(name), *[""] * (len(row) - 1)]
        yield row


def notes_of(comparison: Comparison, marks: Forms, best: str, second: str) -> list[str]:
    """Return the footnotes, the first of which says how the best numbers look, if there are any."""
    words = f"{best}: best, {second}: second best among those asked for the same sparsity."
    return [words, *footnotes(comparison)] if any(marks) else footnotes(comparison)


def blocks(comparison: Comparison) -> dict[str, list[Column]]:
    """Return the columns by what they are about, so that each block fits a terminal."""
    parts: dict[str, list[Column]] = {}
    for column in comparison.columns:
        parts.setdefault(block(column), []).append(column)
    return parts


def terminal(comparison: Comparison) -> str:
    """Return a comparison as a block of columns for each task, one for the whole, for sparsity and for cost."""
    texts, marks = [caption(comparison)], forms(comparison, "★ {}", "☆ {}")
    for name, columns in blocks(comparison).items():
        head, *rows = grid(comparison, columns, "\n", marks)
        texts.append(f"\n{name}\n" + _tabulate([head, *with_titles(comparison, rows, "{}:")], "rounded_outline"))
    return "\n".join([*texts, *notes_of(comparison, marks, "★", "☆")]) + "\n"


def markdown(comparison: Comparison) -> str:
    """Return a comparison as one GitHub table."""
    marks = forms(comparison, "**{}**", "<ins>{}</ins>")
    notes = "\n".join(f"- {note}" for note in notes_of(comparison, marks, "Bold", "underlined"))
    rows = grid(comparison, comparison.columns, marks=marks)
    head, *rows = [[text.replace("|", r"\|") for text in row] for row in rows]
    table = _tabulate([head, *with_titles(comparison, rows, "*{}*")], "github")
    return f"**{caption(comparison)}**\n\n{table}\n\n{notes}\n"


def latex(comparison: Comparison) -> str:
    """Return a comparison as a table for the LaTeX packages booktabs and graphicx."""
    head, *rows = [[_escape_latex(text) for text in row] for row in grid(comparison, comparison.columns)]
    marks = forms(comparison, r"\textbf{%s}", r"\underline{%s}")
    for row, own in zip(rows, marks, strict=True):
        for place, column in enumerate(comparison.columns, len(NAMES)):
            row[place] = own.get(column, "%s") % row[place]
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule", _latex_row(head), "\\midrule"]
    for name, row in zip(groups(comparison), rows, strict=True):
        if name:
            lines.append(f"\\multicolumn{{{len(head)}}}{{l}}{{\\textit{{{name}}}}} \\\\")
        lines.append(_latex_row(row))
    lines += ["\\bottomrule", "\\end{tabular}"]
    notes = [f"{caption(comparison)}.", *notes_of(comparison, marks, "Bold", "underlined")]
    body = "\n".join(lines)
    return (
        f"\\begin{{table}}\n\\centering\n\\resizebox{{\\linewidth}}{{!}}{{%\n{body}}}\n"
        f"\\caption{{{' '.join(map(_escape_latex, notes))}}}\n\\end{{table}}\n"
    )


def _latex_row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$"}
    special |= {"{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}"}
    special |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "–": "--", "°": r"$^\circ$"}
    return "".join(special.get(letter, letter) for letter in text)


def html(comparison: Comparison) -> str:
    """Return a comparison as an HTML table with its caption; every text is escaped."""
    head, *rows = grid(comparison, comparison.columns)
    marks = forms(comparison, "<b>{}</b>", "<u>{}</u>")
    lines = [f"<table><caption>{escape(caption(comparison))}</caption>", f"<thead>{_html_row(head, 'th')}</thead>"]
    lines.append("<tbody>")
    for name, row, own in zip(groups(comparison), rows, marks, strict=True):
        if name:
            lines.append(f'<tr><th colspan="{len(head)}">{escape(name)}</th></tr>')
        cells = [own.get(column, "{}") for column in comparison.columns]
        lines.append(_html_row(row, "td", [*["{}"] * len(NAMES), *cells]))
    notes = "".join(f"<li>{escape(note)}</li>" for note in notes_of(comparison, marks, "Bold", "underlined"))
    return "\n".join([*lines, "</tbody></table>", f"<ul>{notes}</ul>"]) + "\n"


def _html_row(texts: Sequence[str], tag: str, forms: Sequence[str] | None = None) -> str:
    marked = [form.format(escape(text)) for form, text in zip(forms or ["{}"] * len(texts), texts, strict=True)]
    return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in marked) + "</tr>"


def comma_separated(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons as one CSV: plain numbers in their own units, means and deviations apart."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = list(dict.fromkeys(column for each in comparisons for column in each.columns))
    titles = [header(column).replace("%", "fraction") for column in columns]
    facts = ["method", "settings", "finetune", "pretrained", "paradigm", "source", "sparsity", "seeds"]
    writer.writerow([*SETTING, *facts, *(f"{title} {part}" for title in titles for part in ("mean", "std"))])
    for comparison in comparisons:
        for line in comparison.lines:
            own = {**vars(line), "sparsity": _plain(line.sparsity), "seeds": len(line.seeds)}
            cells = [line.cells.get(column, Cell(math.nan, math.nan)) for column in columns]
            numbers = [_plain(value) for cell in cells for value in (cell.mean, cell.deviation)]
            writer.writerow(
                [*(comparison.setting[name] for name in SETTING), *(own[name] for name in facts), *numbers]
            )
    return out.getvalue()


def _plain(value: float) -> float | str:
    """Return a number with all its digits, and nothing for one that is not there."""
    return "" if math.isnan(value) else value


def json_text(comparisons: Sequence[Comparison]) -> str:
    """Return comparisons as JSON: a list of tables; a cell has its mean, deviation and place, 1 the best."""
    return (
        json.dumps(
            [_as_json(comparison) for comparison in comparisons], indent=2, allow_nan=False, ensure_ascii=False
        )
        + "\n"
    )


def _as_json(comparison: Comparison) -> dict[str, Any]:
    lines = []
    for line, own in zip(comparison.lines, places(comparison), strict=True):
        facts = {name: value for name, value in vars(line).items() if name != "cells"}
        cells = [
            {"mean": _known(cell.mean), "deviation": _known(cell.deviation), "place": own.get(column)}
            if (cell := line.cells.get(column))
            else None
            for column in comparison.columns
        ]
        lines.append({**facts, "sparsity": _known(line.sparsity), "cells": cells})
    columns = [{"title": header(column), **vars(column)} for column in comparison.columns]
    return {
        "setting": comparison.setting,
        "columns": columns,
        "lines": lines,
        "failures": comparison.failures,
        "notes": footnotes(comparison),
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
    """Return all comparisons in one of FORMATS; texts for readers end with what sets the tables apart."""
    if style in DATA_FORMATS:
        return DATA_FORMATS[style](comparisons)
    form, last = TEXT_FORMATS[style]
    words = differing(comparisons)
    return "\n".join([*map(form, comparisons), *([last(words)] if words else [])])


TEXT_FORMATS: Mapping[str, tuple[Callable[[Comparison], str], Callable[[str], str]]] = {
    "terminal": (terminal, lambda text: f"{text}\n"),
    "markdown": (markdown, lambda text: f"{text}\n"),
    "latex": (latex, lambda text: f"\\noindent {_escape_latex(text)}\n"),
    "html": (html, lambda text: f"<p>{escape(text)}</p>\n"),
}
"""How one comparison looks, and the sentence after several."""

DATA_FORMATS: Mapping[str, Callable[[Sequence[Comparison]], str]] = {"csv": comma_separated, "json": json_text}

FORMATS = (*TEXT_FORMATS, *DATA_FORMATS)
