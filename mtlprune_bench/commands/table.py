"""`mtlbench table`: the results of a store as comparison tables."""

from __future__ import annotations

from pathlib import Path

import click

from mtlprune_bench.commands._options import plugin_options, store_option

FORMATS = ("terminal", "markdown", "csv", "latex", "html")


@click.command()
@click.option(
    "--format", "style", type=click.Choice(FORMATS), default="terminal", show_default=True, help="Format."
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write, not the screen.")
@store_option
@plugin_options
def command(style: str, output: Path | None, store: Path) -> None:
    """Print a table for every setting of which there are results: method x sparsity against the metrics.

    Rows of different data, protocol, model or recipe are never in one table.
    """
    from mtlprune_bench.errors import UsageError
    from mtlprune_bench.files import write_text
    from mtlprune_bench.render import render
    from mtlprune_bench.results import comparisons
    from mtlprune_bench.store import Store

    rows = Store(store).rows()
    if rows.empty:
        raise UsageError(f"There are no results in {store}. Make some with mtlbench run, or name another --store.")
    text = render(comparisons(rows), style)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_text(output, text)
        click.echo(f"Wrote {output}.", err=True)
