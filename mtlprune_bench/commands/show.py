"""`mtlbench show`: one run."""

from __future__ import annotations

from pathlib import Path

import click

from mtlprune_bench.commands._options import plugin_options, store_option


@click.command()
@click.argument("run")
@store_option
@plugin_options
def command(run: str, store: Path) -> None:
    """Show one run: its configuration, plan, files, sparsity and numbers.

    RUN is its id, or as much of the beginning or the end as tells it from others.
    """
    from mtlprune_bench.results.comparisons import run_tables
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.store import Store

    for table in run_tables(Store(store).find(run)):
        click.echo(plain(*table))
