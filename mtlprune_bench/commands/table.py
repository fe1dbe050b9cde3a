"""`mtlbench table`: the results of a store as comparison tables."""

from __future__ import annotations

from pathlib import Path

import click

from mtlprune_bench.commands._options import plugin_options, store_option

FORMATS = ("terminal", "markdown", "latex", "html", "csv", "json")


@click.command()
@click.option(
    "--format", "style", type=click.Choice(FORMATS), default="terminal", show_default=True, help="Format."
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="NAME=VALUE[,VALUE]",
    help="Only such rows, or with != no such rows: method=snip,lth, sparsity!=0, metric!=error. * is any text.",
)
@click.option("--columns", metavar="NAME[,NAME]", help="Only these columns or blocks: mean_iou, test.loss, cost.")
@click.option(
    "--sort", metavar="NAME", help="From best to worst in this column within each sparsity, or by method."
)
@click.option("--pivot", type=click.Choice(["sparsity"]), help="One line a method, and columns for each sparsity.")
@click.option(
    "--delta",
    "definitions",
    default="mean",
    show_default=True,
    metavar="NAME[,NAME]",
    help="Improvement over dense: mean, adapmtl, one-metric.",
)
@click.option("--published", is_flag=True, help="The papers' numbers beside ours, where they may be compared.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write, not the screen.")
@store_option
@plugin_options
def command(
    style: str,
    filters: tuple[str, ...],
    columns: str | None,
    sort: str | None,
    pivot: str | None,
    definitions: str,
    published: bool,
    output: Path | None,
    store: Path,
) -> None:
    """Print a table for every setting of which there are results: method x sparsity against the metrics.

    Rows of different data, protocol, model or recipe are never in one table. Methods stand in groups: baselines,
    then masks made before training, while training, of a trained network, and learned with the weights.
    """
    from mtlprune_bench.errors import UsageError
    from mtlprune_bench.files import write_text
    from mtlprune_bench.results.render import render
    from mtlprune_bench.results.tables import tables
    from mtlprune_bench.store import Store

    rows = Store(store).rows()
    if rows.empty:
        raise UsageError(f"There are no results in {store}. Make some with mtlbench run, or name another --store.")
    wanted = columns.split(",") if columns else []
    found = tables(rows, filters, wanted, sort, pivot, definitions.split(","), published)
    text = render(found, style)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
        click.echo(f"Wrote {output}.", err=True)
