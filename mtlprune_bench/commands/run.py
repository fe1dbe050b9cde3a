"""`mtlbench run`: train, prune, evaluate and tabulate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mtlprune_bench.commands._options import (
    plugin_options,
    registry_of,
    request_options,
    requests,
    store_option,
)


@click.command()
@request_options
@click.option("--runner", default="local", show_default=True, metavar="NAME", help="What executes the runs.")
@store_option
@plugin_options
@click.pass_context
def command(ctx: click.Context, /, store: Path, runner: str, **options: Any) -> int:
    """Run one or several methods, sparsities and seeds, and print their table.

    What the store holds already is not run again; what was interrupted continues.
    """
    from mtlprune_bench.render import terminal
    from mtlprune_bench.results import comparisons
    from mtlprune_bench.store import FINISHED, Store
    from mtlprune_bench.suite import run_all

    results = Store(store)
    asked = requests(options)
    done = []
    for run_id, status, reason in run_all(asked, results, registry_of(ctx), runner, notify=_notice):
        done.append(run_id)
        good = status == FINISHED
        click.secho(f"{run_id} {status}{'' if good else ': ' + reason}", err=True, fg=None if good else "red")
        ctx.meta["failed"] = ctx.meta.get("failed", False) or not good
    rows = results.rows()
    for comparison in comparisons(rows[rows["run"].isin(done)]):
        click.echo(f"\n{terminal(comparison)}")
    return 1 if ctx.meta.get("failed") else 0


def _notice(text: str) -> None:
    click.secho(text, err=True, fg="yellow", bold=True)
