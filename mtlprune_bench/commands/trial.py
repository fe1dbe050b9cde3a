"""`mtlbench trial`: which settings of arithmetic, and how many readers, make training fast on this machine."""

from __future__ import annotations

from typing import Any

import click

from mtlprune_bench.commands._options import plugin_options, registry_of, request_options, requests


@click.command()
@request_options
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Steps that are timed.")
@click.option("--compile", "compiled", is_flag=True, help="Try torch.compile, too: minutes for a large network.")
@plugin_options
@click.pass_context
def command(ctx: click.Context, /, repeats: int, compiled: bool, **options: Any) -> None:
    """Time training steps with the settings that change a step's arithmetic, and the reading of samples.

    Takes the options of mtlbench run, and stores nothing. Of several runs the first is tried. The settings are
    printed as --set takes them. Those of train round differently, and are part of what names a run.
    """
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.suite import prepare_all
    from mtlprune_bench.runs.trials import try_settings

    def notify(text: str) -> None:
        click.secho(text, err=True, fg="yellow")

    experiment = prepare_all(requests(options)[:1], registry_of(ctx), notify)[0]
    for table in try_settings(experiment, repeats, compiled):
        click.echo(plain(*table))
