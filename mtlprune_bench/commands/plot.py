"""`mtlbench plot`: figures of what a store holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtlprune_bench.commands._options import NearestGroup, plugin_options, registry_of, store_option

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mtlprune_bench.results.comparisons import Comparison

F = TypeVar("F", bound=Callable[..., Any])
COSTS = ("steps", "passes", "seconds")


@click.group(cls=NearestGroup)
@plugin_options
def command() -> None:
    """Draw figures of results as PDF, SVG or PNG: one for each setting, in which a method always looks the same.

    Start with: mtlbench plot sparsity --output loss.png
    """


def output_option(name: str) -> Callable[[F], F]:
    """Add the file to write, by default called after the figure."""
    return click.option(
        "--output",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path(f"{name}.pdf"),
        show_default=True,
        help="File to write: .pdf, .svg or .png.",
    )


def figure_options(name: str) -> Callable[[F], F]:
    """Add what figures of many runs have in common."""

    def add(function: F) -> F:
        filters = click.option(
            "--filter",
            "filters",
            multiple=True,
            metavar="NAME=VALUE[,VALUE]",
            help="Only such runs, or with != no such runs: method=snip,lth, sparsity!=0. * is any text.",
        )
        return filters(output_option(name)(store_option(plugin_options(function))))

    return add


@command.command()
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="What to draw; repeatable. [test.loss]")
@figure_options("sparsity")
def sparsity(metrics: tuple[str, ...], filters: tuple[str, ...], output: Path, store: Path) -> None:
    """Loss, or any metric, against sparsity: means over seeds, with a band of one standard deviation.

    Dense networks are horizontal lines. Metrics are called as in the columns of mtlbench table: mean_iou,
    segmentation.mean_iou, delta.
    """
    from mtlprune_bench.figures.charts import LOSS, sparsity_figure

    names = metrics or (LOSS,)
    _draw(store, filters, output, lambda comparison: sparsity_figure(comparison, names), names)


@command.command()
@click.option("--metric", metavar="NAME", help="What to draw. [delta, or test.loss where no run is dense]")
@click.option(
    "--cost", type=click.Choice(COSTS), default="passes", show_default=True, help="What to draw it against."
)
@figure_options("cost")
def cost(metric: str | None, cost: str, filters: tuple[str, ...], output: Path, store: Path) -> None:
    """Accuracy against what a run has cost, its dense training included, with the Pareto front."""
    from mtlprune_bench.figures.charts import cost_figure

    names = (metric,) if metric else ()
    _draw(store, filters, output, lambda comparison: cost_figure(comparison, metric, cost), names)


@command.command()
@click.option("--over-time", is_flag=True, help="By step, of runs whose masks change while they train.")
@figure_options("components")
def components(over_time: bool, filters: tuple[str, ...], output: Path, store: Path) -> None:
    """Sparsity of each component, the shared one and each task's, of the final masks or over time."""
    from mtlprune_bench.figures.charts import components_figure
    from mtlprune_bench.figures.traces import growth_figure
    from mtlprune_bench.store import Store

    def draw(comparison: Comparison) -> Figure:
        return growth_figure(comparison, Store(store)) if over_time else components_figure(comparison)

    _draw(store, filters, output, draw)


@command.command()
@figure_options("curves")
def curves(filters: tuple[str, ...], output: Path, store: Path) -> None:
    """Training losses by step, each task's and the weighted sum, over all trainings that a run consists of."""
    from mtlprune_bench.figures.traces import curves_figure
    from mtlprune_bench.store import Store

    _draw(store, filters, output, lambda comparison: curves_figure(comparison, Store(store)))


@command.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--images", default="0", show_default=True, metavar="N[,N]", help="Test images, counted from 0.")
@click.option("--data-root", metavar="DIR", help="Folder with the dataset's files. [as the runs had it]")
@output_option("predictions")
@store_option
@plugin_options
@click.pass_context
def predictions(
    ctx: click.Context,
    runs: tuple[str, ...],
    images: str,
    data_root: str | None,
    output: Path,
    store: Path,
) -> None:
    """Test images, their truth, and what the final networks of several runs predict, side by side.

    RUN is an id, or as much of its beginning or end as tells it from others.
    """
    from mtlprune_bench.errors import UsageError
    from mtlprune_bench.figures.galleries import predictions_figure
    from mtlprune_bench.figures.style import check_ending
    from mtlprune_bench.store import Store

    check_ending(output)
    if not all(number.strip().isdigit() for number in images.split(",")):
        raise UsageError(f"'{images}' are no numbers of images; write --images 0,5.")
    numbers = [int(number) for number in images.split(",")]
    registry = registry_of(ctx)
    _write(lambda: [predictions_figure(runs, numbers, Store(store), registry, data_root)], output)


def _draw(
    store: Path,
    filters: tuple[str, ...],
    output: Path,
    draw: Callable[[Comparison], Figure],
    names: tuple[str, ...] = (),
) -> None:
    """Write a figure for each setting of which the store has results, with columns called one of `names` if given.

    Raises UsageError where there is none.
    """
    from mtlprune_bench.errors import UsageError
    from mtlprune_bench.figures.style import check_ending
    from mtlprune_bench.results.comparisons import comparisons
    from mtlprune_bench.results.views import check_columns, chosen, of_lines, parse_filter, taken, with_columns
    from mtlprune_bench.store import Store

    check_ending(output)
    wanted = [parse_filter(text) for text in filters]
    lines = of_lines(wanted)
    rows = Store(store).rows()
    good = rows[taken(rows, [each for each in wanted if each not in lines])]
    found = [chosen(comparison, lines, frozenset()) for comparison in comparisons(good)]
    found = [comparison for comparison in found if comparison.lines]
    if not found:
        left = f"left by the filters {' '.join(filters)}" if filters else f"in {store}"
        raise UsageError(f"There are no results {left}. mtlbench table --store {store} shows all there are.")
    check_columns(found, names)
    drawable = [each for each in found if not names or with_columns(each, names).columns]
    _write(lambda: [draw(comparison) for comparison in drawable], output)


def _write(draw: Callable[[], Sequence[Figure]], output: Path) -> None:
    """Write figures in the style of all figures, and say where."""
    import matplotlib

    from mtlprune_bench.figures.style import STYLE, write

    with matplotlib.rc_context(STYLE):
        for path in write(draw(), output):
            click.echo(f"Wrote {path}.")
