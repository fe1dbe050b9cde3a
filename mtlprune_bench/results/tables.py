"""Tables as they are asked for: rows, filters, columns and an order in, comparisons out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtlprune_bench.errors import UsageError, unknown
from mtlprune_bench.results.comparisons import Comparison, comparisons
from mtlprune_bench.results.deltas import DEFINITIONS
from mtlprune_bench.results.published import beside
from mtlprune_bench.results.views import (
    check_columns,
    chosen,
    of_lines,
    parse_filter,
    pivoted,
    sorted_by,
    taken,
    with_columns,
    with_ranks,
)

if TYPE_CHECKING:
    import pandas as pd


def tables(
    rows: pd.DataFrame,
    filters: Sequence[str] = (),
    columns: Sequence[str] = (),
    sort: str | None = None,
    pivot: str | None = None,
    definitions: Sequence[str] = ("mean",),
    published: bool = False,
) -> list[Comparison]:
    """Return the comparisons of a store's `rows` that the options of `mtlbench table` ask for.

    Raises UsageError for unknown names, and where the filters leave nothing.
    """
    found = _compared(rows, filters, sort, definitions, published)
    if columns:
        check_columns(found, columns)
        found = [with_columns(comparison, columns) for comparison in found]
    return [pivoted(comparison) for comparison in found] if pivot else found


def _compared(
    rows: pd.DataFrame, filters: Sequence[str], sort: str | None, definitions: Sequence[str], published: bool
) -> list[Comparison]:
    """Return the comparisons of `rows` that are asked for, ranked and sorted. Raises UsageError."""
    wanted = [parse_filter(text) for text in filters]
    lines = of_lines(wanted)
    for name in definitions:
        if name not in DEFINITIONS:
            raise unknown("definition of delta", name, DEFINITIONS)
    good = taken(rows, [each for each in wanted if each not in lines])
    runs = frozenset(rows["run"][good & taken(rows, lines)])
    found = [
        with_ranks(chosen(comparison, lines, runs))
        for comparison in comparisons(rows[good], [DEFINITIONS[name] for name in dict.fromkeys(definitions)])
    ]
    found = [comparison for comparison in found if comparison.lines or comparison.failures]
    if not found:
        raise UsageError(
            f"No results are left by the filters {' '.join(filters)}. mtlbench table shows all there are."
        )
    if sort:
        check_columns(found, [name for name in [sort] if name != "method"])
        found = [sorted_by(comparison, sort) for comparison in found]
    return [beside(comparison, lines) for comparison in found] if published else found
