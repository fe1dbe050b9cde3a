"""`mtlbench measure`: what the network of a run costs to keep and to use."""

from __future__ import annotations

from pathlib import Path

import click

from mtlprune_bench.commands._options import plugin_options, registry_of, store_option


@click.command()
@click.argument("run")
@click.option("--size", metavar="HxW", help="Size of the image. [the test set's]")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=30, show_default=True, help="Passes that are timed."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of the processor."
)
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["terminal", "json"]),
    default="terminal",
    show_default=True,
    help="Format.",
)
@click.option("--data-root", metavar="DIR", help="Folder with the dataset's files, where it is another one now.")
@store_option
@plugin_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    run: str,
    size: str | None,
    repeats: int,
    threads: int,
    device: str,
    style: str,
    data_root: str | None,
    store: Path,
) -> None:
    """Measure the network of a run: weights, multiplications, bytes, time and memory for one image.

    RUN is its id, or as much of the beginning or the end as tells it from others. The dense network, the masked
    one and one with sparse kernels take turns; whether sparsity makes anything faster here is said in words.
    """
    import dataclasses
    import json

    from mtlprune_bench.export.formats import open_subject
    from mtlprune_bench.export.measure import measure, tables
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.environment import resolve_device
    from mtlprune_bench.store import Store

    where = resolve_device(device)
    subject = open_subject(Store(store).find(run), registry_of(ctx), size, data_root)
    measured = measure(subject, where, repeats, threads)
    if style == "json":
        click.echo(json.dumps(dataclasses.asdict(measured), indent=2))
        return
    for table in tables(measured):
        click.echo(plain(*table))
    for note in measured.notes:
        click.echo(f"- {note}")
