"""`mtlbench compare`: whether methods differ, over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlprune_bench.commands._options import plugin_options, store_option

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("terminal", "markdown", "csv", "json")


@click.command()
@click.argument("reference")
@click.argument("methods", nargs=-1, required=True)
@click.option("--dataset", metavar="NAME", help="Only this dataset.")
@click.option("--sparsity", metavar="S[,S]", help="Only these sparsities.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME[,NAME]", help="Only these, such as delta.")
@click.option(
    "--delta", "definition", metavar="NAME", default="mean", show_default=True, help="mean, adapmtl or one-metric."
)
@click.option(
    "--format", "style", type=click.Choice(FORMATS), default="terminal", show_default=True, help="Format."
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write, not the screen.")
@store_option
@plugin_options
def command(
    reference: str,
    methods: tuple[str, ...],
    dataset: str | None,
    sparsity: str | None,
    metrics: tuple[str, ...],
    definition: str,
    style: str,
    output: Path | None,
    store: Path,
) -> None:
    """Compare METHODS with a REFERENCE: runs of equal seeds, in each setting and at each sparsity.

    Prints the mean difference, its bootstrap interval, and a p-value with Holm's correction over METHODS. A method
    is named as in the first column of mtlbench table, as in 'lth (control=shuffled)', or by the beginning of that.
    A network that is not pruned, such as dense, is compared with every sparsity.
    """
    from mtlprune_bench.errors import unknown
    from mtlprune_bench.files import write_text
    from mtlprune_bench.results.deltas import DEFINITIONS
    from mtlprune_bench.results.evidence import FORMATS
    from mtlprune_bench.results.paired import pairings

    if definition not in DEFINITIONS:
        raise unknown("definition of delta", definition, DEFINITIONS)
    names = [name.strip() for part in metrics for name in part.split(",")]
    found = pairings(
        _rows(store, dataset), reference, methods, _sparsities(sparsity), names, DEFINITIONS[definition]
    )
    text = FORMATS[style](found)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
        click.echo(f"Wrote {output}.", err=True)


def _rows(store: Path, dataset: str | None) -> pd.DataFrame:
    """Return the rows of a store, of one dataset if it is named. Raises UsageError where there are none."""
    from mtlprune_bench.errors import UsageError, unknown
    from mtlprune_bench.store import Store

    rows = Store(store).rows()
    if rows.empty:
        raise UsageError(f"There are no results in {store}. Make some with mtlbench run, or name another --store.")
    if dataset is None:
        return rows
    if dataset not in (known := set(rows["dataset"])):
        raise unknown("dataset", dataset, known)
    return rows[rows["dataset"] == dataset]


def _sparsities(text: str | None) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise click.BadParameter(
            f"'{text}' is no list of numbers, such as 0.5,0.9.", param_hint="--sparsity"
        ) from None
