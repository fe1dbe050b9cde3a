"""`mtlbench doctor`: whether this machine is ready, and what to do where it is not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlprune_bench.commands._options import plugin_options, registry_of, store_option

if TYPE_CHECKING:
    from mtlprune_bench.runs.doctor import Finding

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command()
@click.option("--no-run", is_flag=True, help="Make no run of two steps.")
@click.option("--determinism", is_flag=True, help="Make a short run twice, and once interrupted, and compare.")
@click.option("--json", "as_json", is_flag=True, help="Print what is found as JSON.")
@store_option
@plugin_options
@click.pass_context
def command(ctx: click.Context, no_run: bool, determinism: bool, as_json: bool, store: Path) -> int:
    """Say whether this machine is ready, and what to do where it is not.

    Looks at versions, processors, GPUs, plugins, the files of datasets, and disk, and makes a run of two steps in
    a folder that is removed again. The exit code is 1 where there is a problem; a warning leaves it 0.
    """
    found = list(_findings(ctx, store, not no_run, determinism))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(each) for each in found], indent=2))
    else:
        _print(found)
    return int(any(each.verdict == "problem" for each in found))


def _findings(ctx: click.Context, store: Path, run: bool, repeat: bool) -> Iterator[Finding]:
    """Yield all that is found; without plugins that load, what does not need them."""
    import tempfile

    from mtlprune_bench.errors import MtlbenchError
    from mtlprune_bench.runs import doctor
    from mtlprune_bench.testing.determinism import determinism
    from mtlprune_bench.testing.smoke import smoke

    try:
        registry = registry_of(ctx)
    except MtlbenchError as error:
        yield from (*doctor.versions(), *doctor.machine(), *doctor.places(store))
        yield doctor.Finding("plugins", "all", "problem", str(error), "mtlbench doctor needs them for the rest.")
        return
    yield from doctor.findings(registry, store)
    if run:
        with tempfile.TemporaryDirectory() as folder:
            yield smoke(registry, Path(folder))
    if repeat:
        with tempfile.TemporaryDirectory() as folder:
            yield from determinism(registry, Path(folder))


def _print(found: list[Finding]) -> None:
    """Print a line for each finding, below its area, then how many of each verdict there are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "", "what", "found", "what to do", box=box.SIMPLE_HEAD, title="mtlbench doctor", title_justify="left"
    )
    area = ""
    for each in found:
        if each.area != area:
            table.add_section()
            table.add_row("", Text(each.area, style="bold"))
            area = each.area
        verdict = Text(each.verdict, style=COLOURS[each.verdict])
        table.add_row(verdict, each.subject, Text(each.found, overflow="fold"), Text(each.advice, overflow="fold"))
    Console(highlight=False).print(table)
    counts = [sum(each.verdict == verdict for each in found) for verdict in COLOURS]
    click.echo("{} ok, {} warnings, {} problems.".format(*counts))
