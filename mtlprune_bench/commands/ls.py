"""`mtlbench ls`: what there is, and every setting of it."""

from __future__ import annotations

import click

from mtlprune_bench.commands._options import plugin_options, registry_of


@click.command()
@click.argument("what", required=False)
@plugin_options
@click.pass_context
def command(ctx: click.Context, what: str | None) -> None:
    """List what plugins have registered, or every setting of one thing.

    WHAT is a kind (methods, datasets, models, tasks, metrics, scorers, arbiters, schedules, allocations,
    runners, commands, plugins, protocols, settings) or a name, such as disparse-static. Without
    it all kinds are listed.
    """
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.catalogue import tables

    for table in tables(registry_of(ctx), what):
        click.echo(plain(*table))
