"""`mtlbench masks`: what masks keep, how far they agree, and where tasks part ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mtlprune_bench.commands._options import plugin_options, registry_of, request_options, requests, store_option

if TYPE_CHECKING:
    from mtlprune_bench.analysis.sources import TaskMasks
    from mtlprune_bench.host.registry import Registry

FORMATS = ("terminal", "csv")


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--before-training",
    is_flag=True,
    help="Each task's own masks at initialisation, without a run; takes the options of mtlbench run.",
)
@click.option(
    "--format", "style", type=click.Choice(FORMATS), default="terminal", show_default=True, help="Format."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Picture to draw as well: .png, .pdf or .svg.",
)
@request_options
@store_option
@plugin_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    runs: tuple[str, ...],
    before_training: bool,
    style: str,
    output: Path | None,
    store: Path,
    **options: Any,
) -> None:
    """Print the density of masks by component and by layer, and how far they agree.

    Of stored runs, their final masks; of several, the overlap of each two beside that of random masks as dense.
    RUN is an id, or as much of its beginning or end as tells it from others. With --before-training, what each
    task alone would keep, the IoU of the tasks' masks by layer, and where the trunk might branch:

    mtlbench masks --before-training --method disparse-static --dataset nyuv2
    """
    from mtlprune_bench.errors import UsageError
    from mtlprune_bench.figures.style import check_ending

    asked = [parameter.opts[0] for parameter in ctx.command.params if options.get(str(parameter.name))]
    if before_training == bool(runs):
        raise UsageError("Name runs of the store, or say --before-training with a method and a dataset, not both.")
    if asked and not before_training:
        raise UsageError(f"{', '.join(asked)}: runs are as they were made; these go with --before-training.")
    if output is not None:
        check_ending(output)
    registry = registry_of(ctx)
    if before_training:
        _show_tasks(_tasks(registry, store, options), style, output)
    else:
        _show_runs(runs, registry, store, style, output)
    if output is not None:
        click.echo(f"Wrote {output}.", err=True)


def _tasks(registry: Registry, store: Path, options: dict[str, Any]) -> list[TaskMasks]:
    """Return the tasks' masks of all that `options` ask for."""
    from mtlprune_bench.analysis.sources import masks_before_training
    from mtlprune_bench.runs.suite import prepare_all
    from mtlprune_bench.store import Store

    def notify(text: str) -> None:
        click.secho(text, err=True, fg="yellow")

    experiments = prepare_all(requests(options), registry, notify)
    found = [masks_before_training(experiment, Store(store), registry) for experiment in experiments]
    for one in found:
        for note in one.notes:
            notify(f"{one.run}: {note}")
    return found


def _show_tasks(found: Sequence[TaskMasks], style: str, output: Path | None) -> None:
    from mtlprune_bench.analysis.views import comma_separated, task_records, task_tables
    from mtlprune_bench.figures.masks import task_figure
    from mtlprune_bench.figures.style import write
    from mtlprune_bench.results.render import plain

    if output is not None:  # before the text, whose reader may close the pipe
        write([task_figure(found)], output)
    if style == "csv":
        click.echo(comma_separated(record for one in found for record in task_records(one)), nl=False)
    else:
        for table in (table for one in found for table in task_tables(one)):
            click.echo(plain(*table))


def _show_runs(names: Sequence[str], registry: Registry, store: Path, style: str, output: Path | None) -> None:
    from mtlprune_bench.analysis.sources import check_same_network, stored_masks
    from mtlprune_bench.analysis.views import comma_separated, run_records, run_tables
    from mtlprune_bench.figures.masks import run_figure
    from mtlprune_bench.figures.style import write
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.store import Store

    folders = dict.fromkeys(Store(store).find(name) for name in names)
    runs = [stored_masks(folder, registry) for folder in folders]
    check_same_network(runs)
    if output is not None:
        write([run_figure(runs)], output)
    if style == "csv":
        click.echo(comma_separated(run_records(runs)), nl=False)
    else:
        for table in run_tables(runs):
            click.echo(plain(*table))
