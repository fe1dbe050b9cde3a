"""`mtlbench data`: what a dataset is, whether its files are sound, and what makes training on them faster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from mtlprune_bench.commands._options import NearestGroup, plugin_options, registry_of
from mtlprune_bench.protocols import PROTOCOLS

F = TypeVar("F", bound=Callable[..., Any])
SPLITS = ("train", "validation", "test")


@click.group(cls=NearestGroup, invoke_without_command=True)
@plugin_options
@click.pass_context
def command(ctx: click.Context) -> None:
    """Look at the files of a dataset, verify, prepare or generate them.

    Start with: mtlbench data info nyuv2
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def places(function: F) -> F:
    """Add the options that say where the files are."""
    root = click.option(
        "--data-root", metavar="DIR", help="Folder with the files. [MTLBENCH_DATA, else the usual places]"
    )
    layout = click.option("--layout", metavar="NAME", help="How they lie in it. [detected]")
    return root(layout(function))


workers_option = click.option(
    "--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, help="Threads. [one a processor]"
)


@contextmanager
def progress(title: str, total: int | None, shown_as_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with what has been done; a bar shows it where standard error is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    done = DownloadColumn() if shown_as_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@command.command()
@click.argument("name")
@places
@plugin_options
@click.pass_context
def info(ctx: click.Context, name: str, data_root: str | None, layout: str | None) -> None:
    """Say what a dataset is, where to get it, and what of it is found."""
    from mtlprune_bench.data.inventory import info_tables, with_files
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.opening import cache_folder

    dataset, files = with_files(registry_of(ctx), name)
    for table in info_tables(dataset, files, data_root, layout, cache_folder()):
        click.echo(plain(*table))


@command.command()
@click.argument("name")
@places
@workers_option
@click.option("--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="File for the report.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Images to read of each split. [all]")
@plugin_options
@click.pass_context
def verify(
    ctx: click.Context,
    name: str,
    data_root: str | None,
    layout: str | None,
    workers: int,
    output: Path | None,
    limit: int | None,
) -> int:
    """Read every file of a dataset, and name all that are missing, damaged or contradict each other.

    The exit code is 1 where there are any. A prepared copy, where there is one, is verified too.
    """
    import json

    from mtlprune_bench.data.find import require
    from mtlprune_bench.data.inventory import count_read, prepared_problems, with_files
    from mtlprune_bench.data.reports import report_table
    from mtlprune_bench.data.verify import verify
    from mtlprune_bench.files import write_text
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.opening import cache_folder

    dataset, files = with_files(registry_of(ctx), name)
    found = require(dataset, data_root, layout)
    with progress(f"verifying {name}", count_read(found, limit)) as advance:
        report = verify(dataset, found, workers, advance, limit)
    report = report.adding(prepared_problems(files, found, cache_folder()))
    click.echo(plain(*report_table(report)))
    for problem in report.problems:
        click.secho(f"Problem: {problem.text}", fg="red")
    for warning in report.warnings:
        click.secho(f"Warning: {warning.text}", fg="yellow")
    click.echo(f"{len(report.problems)} problems, {len(report.warnings)} warnings.")
    if output is not None:
        write_text(output, json.dumps(report.as_json(), indent=1) + "\n")
        click.echo(f"Wrote {output}.", err=True)
    return 1 if report.problems else 0


@command.command()
@click.argument("name")
@places
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for them. [in the user's cache]"
)
@workers_option
@plugin_options
@click.pass_context
def prepare(
    ctx: click.Context,
    name: str,
    data_root: str | None,
    layout: str | None,
    output: Path | None,
    workers: int,
) -> None:
    """Decode all images and labels once, into files from which training reads faster.

    What is there already is kept; what was interrupted continues.
    """
    from mtlprune_bench.data.inventory import free_bytes, needed, require_originals, with_files
    from mtlprune_bench.data.prepared import prepare, prepared_folder
    from mtlprune_bench.runs.opening import cache_folder

    dataset, files = with_files(registry_of(ctx), name)
    found = require_originals(dataset, data_root, layout)
    folder = output or prepared_folder(files, found, cache_folder())
    total, free = needed(dataset, found), free_bytes(folder)
    click.echo(f"Takes {total / 1e9:.2f} GB in {folder}; {free / 1e9:.2f} GB are free.", err=True)
    with progress(f"preparing {name}", total, shown_as_bytes=True) as advance:
        prepare(dataset, found, folder, workers, advance)
    click.echo(f"Prepared in {folder}. Runs use it from now on{f', with --data-root {output}' if output else ''}.")


@command.command()
@click.argument("name")
@click.argument("index", type=click.IntRange(min=0))
@places
@click.option("--split", type=click.Choice(SPLITS), default="train", show_default=True, help="Split.")
@click.option(
    "--protocol", type=click.Choice(list(PROTOCOLS)), default="standard", show_default=True, help="Protocol."
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Picture to write. [NAME-SPLIT-INDEX.png]"
)
@plugin_options
@click.pass_context
def show(
    ctx: click.Context,
    name: str,
    index: int,
    data_root: str | None,
    layout: str | None,
    split: str,
    protocol: str,
    output: Path | None,
) -> None:
    """Draw an image with all its labels, as runs read them. INDEX counts from 0."""
    from mtlprune_bench.data.find import require
    from mtlprune_bench.data.inventory import sample_of, with_files
    from mtlprune_bench.data.pictures import draw
    from mtlprune_bench.files import write_atomic

    registry = registry_of(ctx)
    dataset, _ = with_files(registry, name)
    found = require(dataset, data_root, layout)
    sample = sample_of(dataset, found, PROTOCOLS[protocol], split, index)
    tasks = {labels.task: registry.get("tasks", labels.task) for labels in dataset.labels}
    title = f"{name}, {split} {index}, layout {found.layout.name}, protocol {protocol}"
    path = output or Path(f"{name}-{split}-{index}.png")
    picture = draw(sample, dataset, tasks, title)
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))
    click.echo(f"Wrote {path}.")


def _size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Return (H, W) of "HxW". Raises UsageError for anything else."""
    import re

    from mtlprune_bench.errors import UsageError

    if value is None:
        return None
    if (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", value, re.ASCII)) is None:
        raise UsageError(f"Size '{value}' is no height and width in pixels, such as 240x320.")
    return int(match[1]), int(match[2])


@command.command()
@click.argument("name")
@click.option("--layout", metavar="NAME", required=True, help="How the files are to lie in the folder.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", required=True, help="Training images.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for them, empty or new.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the scenes.")
@click.option("--size", metavar="HxW", callback=_size, help="Pixels of an image. [the layout's]")
@plugin_options
@click.pass_context
def synth(
    ctx: click.Context,
    name: str,
    layout: str,
    count: int,
    output: Path,
    seed: int,
    size: tuple[int, int] | None,
) -> None:
    """Write generated images in a dataset's own files, to try everything without the real ones.

    A quarter as many are written for the test.
    """
    from mtlprune_bench.data.inventory import generator_of, with_files
    from mtlprune_bench.data.locate import chosen
    from mtlprune_bench.data.synth import split_sizes, synthesise

    registry = registry_of(ctx)
    dataset, files = with_files(registry, name)
    (wanted,) = chosen(files, layout)
    with progress(f"generating {name}", sum(split_sizes(count).values())) as advance:
        written = synthesise(wanted, generator_of(registry, dataset), output, count, seed, size, advance)
    images = " and ".join(f"{number} {split}" for split, number in written.items())
    click.echo(f"Wrote {images} images in {output}. These are generated, not {files.title}.")
