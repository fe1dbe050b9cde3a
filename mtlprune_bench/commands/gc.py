"""`mtlbench gc`: what a store holds that no run needs, and how much room it takes."""

from __future__ import annotations

from pathlib import Path

import click

from mtlprune_bench.commands._options import plugin_options, store_option

DAY = 86400


@click.command()
@click.option("--remove", "removing", is_flag=True, help="Remove what has no reason to be kept.")
@click.option("--scores", is_flag=True, help="Also the scores whose runs have all finished.")
@store_option
@plugin_options
def command(removing: bool, scores: bool, store: Path) -> int:
    """List the stages that no run refers to, what killed processes left behind, and what was set aside.

    Removes nothing without --remove, and never what was set aside, what a process is working on, or what a run may
    still need.
    """
    from rich.filesize import decimal

    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.leftovers import leftovers, remove
    from mtlprune_bench.store import Store

    found, unclear = leftovers(Store(store), scores)
    rows = [
        [
            str(item.path.relative_to(store)),
            item.kind,
            decimal(item.size),
            f"{item.age / DAY:.1f} days",
            item.kept or "not needed",
        ]
        for item in found
    ]
    click.echo(plain(f"leftovers in {store}", rows, ["path", "what", "size", "age", "why"]))
    if unclear:
        click.secho(
            f"Nothing can be removed, as plan.json does not say which stages are needed by {', '.join(unclear)}. "
            "Run it again, or move its folder away.",
            err=True,
            fg="red",
        )
    if not removing and not found:
        return 0
    if not removing:
        click.echo(f"--remove frees {decimal(sum(item.size for item in found if not item.kept))}.")
        return 0
    click.echo(f"Freed {decimal(sum(item.size for item in found if remove(item)))}.")
    return 1 if unclear else 0
