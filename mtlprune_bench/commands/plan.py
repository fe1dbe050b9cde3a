"""`mtlbench plan`: what a run would do, before it does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mtlprune_bench.commands._options import plugin_options, registry_of, request_options, requests, store_option


@click.command()
@request_options
@store_option
@plugin_options
@click.pass_context
def command(ctx: click.Context, /, store: Path, **options: Any) -> None:
    """Print the stages of runs, their updates of the masks, and the steps and passes they will spend.

    Takes the options of mtlbench run, and runs nothing.
    """
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.plans import plan_tables
    from mtlprune_bench.runs.suite import prepare_all
    from mtlprune_bench.store import Store

    def notify(text: str) -> None:
        click.secho(text, err=True, fg="yellow")

    for experiment in prepare_all(requests(options), registry_of(ctx), notify):
        for table in plan_tables(experiment, Store(store)):
            click.echo(plain(*table))
