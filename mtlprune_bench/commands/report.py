"""`mtlbench report`: the results of a store as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from mtlprune_bench.commands._options import plugin_options, registry_of, store_option


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="File to write.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="NAME=VALUE[,VALUE]",
    help="Only such rows, as in mtlbench table.",
)
@click.option(
    "--reference", metavar="METHOD", help="What methods are compared with, over seeds. [the dense network]"
)
@click.option("--masks", is_flag=True, help="Also the density of each layer, from the stored masks.")
@store_option
@plugin_options
@click.pass_context
def command(
    ctx: click.Context, output: Path, filters: tuple[str, ...], reference: str | None, masks: bool, store: Path
) -> None:
    """Write one HTML file with all results: tables, charts, paired comparisons, failures, provenance.

    It needs no network and no other file. Every number has the runs that it is from one click away: their seeds,
    configuration, plan, commit, packages, device and command.
    """
    from mtlprune_bench.files import write_text
    from mtlprune_bench.report.content import content
    from mtlprune_bench.report.page import page
    from mtlprune_bench.store import Store

    registry = registry_of(ctx) if masks else None
    found = content(Store(store), output.absolute().parent, filters, reference, registry)
    write_text(output, page(found))
    runs, failed = len(found["runs"]), sum(len(each["failures"]) for each in found["settings"])
    size = output.stat().st_size / 1e6
    settings = "1 setting" if len(found["settings"]) == 1 else f"{len(found['settings'])} settings"
    click.echo(f"Wrote {output}: {settings}, {runs} runs, {failed} failed; {size:.1f} MB.")
