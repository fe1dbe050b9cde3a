"""`mtlbench suite`: plan, run and watch all runs of a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtlprune_bench.commands._completion import SETTINGS, completing
from mtlprune_bench.commands._execution import execution_options, execution_settings, notice, report
from mtlprune_bench.commands._options import NearestGroup, plugin_options, registry_of, store_option

if TYPE_CHECKING:
    from mtlprune_bench.host.registry import Registry
    from mtlprune_bench.runs.experiment import Experiment
    from mtlprune_bench.runs.survey import State
    from mtlprune_bench.runs.worker import Opened

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=NearestGroup)
@plugin_options
def command() -> None:
    """Plan, run and watch the runs of a suite: a TOML file with the grid of a paper's tables.

    Start with: mtlbench suite plan benchmarks/quick.toml
    """


def suite_options(function: F) -> F:
    """Add the file of the suite, and the options that choose from it and change its settings."""
    options = [
        click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False)),
        click.option(
            "--only",
            multiple=True,
            metavar="PATTERN",
            help="Runs whose id begins so, as in 'lth-*-0.9'; repeatable.",
        ),
        click.option("--shard", default="", metavar="I/N", help="Part I of N parts, for N machines."),
        click.option("--data-root", metavar="DIR", help="Folder with the datasets' files."),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            shell_complete=completing(SETTINGS),
            help="As in train.steps=100.",
        ),
        store_option,
        plugin_options,
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _open(
    ctx: click.Context, options: dict[str, Any], notify: Callable[[str], None] = notice
) -> tuple[list[Experiment], Registry, Opened]:
    """Return the chosen experiments of the suite, with what they were prepared by."""
    from dataclasses import replace

    from mtlprune_bench.runs.grid import read_suite
    from mtlprune_bench.runs.request import merge_settings, parse_settings
    from mtlprune_bench.runs.suite import chosen, prepare_all

    suite, registry = read_suite(options["file"]), registry_of(ctx)
    opened: Opened = {}
    lines = [f"data.root={options['data_root']}"] if options["data_root"] else []
    changes = parse_settings([*lines, *options["assignments"]])
    requests = [replace(request, settings=merge_settings(request.settings, changes)) for request in suite.requests]
    experiments = prepare_all(requests, registry, notify, opened, distinct=True)
    return chosen(experiments, options["only"], options["shard"]), registry, opened


@command.command()
@suite_options
@click.option("--measure", is_flag=True, help="Make a few training steps, to estimate the time.")
@click.pass_context
def plan(ctx: click.Context, /, store: Path, measure: bool, **options: Any) -> None:
    """Print the stages of a suite as a graph, what is done, and the steps, passes and time it takes."""
    _plan(ctx, store, options, measure)


def _plan(ctx: click.Context, folder: Path, options: dict[str, Any], measure: bool = False) -> None:
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.config import Engine, override
    from mtlprune_bench.runs.environment import resolve_device
    from mtlprune_bench.runs.grid import read_suite
    from mtlprune_bench.runs.survey import measure_speeds, measured_speeds, survey, totals, tree
    from mtlprune_bench.store import Store

    experiments, registry, _ = _open(ctx, options)
    store = Store(folder)
    states = survey(experiments, store)
    suite = read_suite(options["file"])
    words = ": ".join(text for text in (suite.title, suite.description) if text)
    click.echo(f"{words}\n" if words else "", nl=bool(words))
    click.echo("\n".join(tree(states)) + "\n")
    click.echo(plain(*totals(experiments, states)))
    speeds = measured_speeds(experiments, states, store)
    if measure:
        engine = override(Engine(), experiments[0].request.settings.get("engine", {}), "engine")
        speeds |= measure_speeds(experiments, registry, engine, resolve_device(engine.device))
    click.echo(_time(experiments, states, speeds))


def _time(experiments: list[Experiment], states: list[State], speeds: dict[str, float]) -> str:
    """Return how long the rest takes, in words."""
    from mtlprune_bench.runs.survey import estimate

    if all(state.done for state in states):
        return "All is done."
    seconds, unknown = estimate(experiments, states, speeds)
    if not speeds:
        return "Time: unknown, as no training of this kind is in the store; --measure makes a few steps to see."
    left = f"; {unknown} jobs of unknown speed come on top (--measure)" if unknown else ""
    about = timedelta(seconds=round(seconds))
    return f"Time: about {about} of training and scoring, one job after the other, evaluation not counted{left}."


@command.command()
@suite_options
@execution_options
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.pass_context
def run(ctx: click.Context, /, store: Path, dry_run: bool, **options: Any) -> int:
    """Run what is left of a suite, and print its tables. Failed runs are left alone: see retry.

    Ctrl-C stops it at any moment; the same command goes on.
    """
    options["assignments"] = (*execution_settings(options), *options["assignments"])
    if dry_run:
        _plan(ctx, store, options)
        return 0
    return _execute(ctx, store, options)


@command.command()
@suite_options
@execution_options
@click.pass_context
def retry(ctx: click.Context, /, store: Path, **options: Any) -> int:
    """Run the failed runs of a suite again."""
    options["assignments"] = (*execution_settings(options), *options["assignments"])
    return _execute(ctx, store, options, retry=True)


def _execute(ctx: click.Context, folder: Path, options: dict[str, Any], retry: bool = False) -> int:
    from mtlprune_bench.runs.suite import execute_all, failed
    from mtlprune_bench.store import Store

    store = Store(folder)
    experiments, registry, opened = _open(ctx, options)
    if retry:
        experiments = failed(experiments, store)
    if not experiments:
        click.echo("No run has failed." if retry else f"Nothing is in shard {options['shard']}.")
        return 0
    return report(execute_all(experiments, store, registry, opened, retry), store)


@command.command()
@suite_options
@click.option("--once", is_flag=True, help="Print it once, also on a terminal.")
@click.option("--every", type=click.FloatRange(min=0.1), default=5.0, show_default=True, metavar="SECONDS")
@click.pass_context
def status(ctx: click.Context, /, store: Path, once: bool, every: float, **options: Any) -> None:
    """Show how many jobs are done, what is running and what has failed; on a terminal live, until all is done."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.jobs import Outcome
    from mtlprune_bench.runs.survey import status_tables, survey
    from mtlprune_bench.store import Store

    experiments, _, _ = _open(ctx, options, lambda text: None)
    ended: dict[str, Outcome] = {}

    def look() -> tuple[str, bool]:
        states = survey(experiments, Store(store), ended)
        # Looked up once: a failed run may be tried again, a finished one stays.
        ended.update({s.job.name: Outcome(s.job.name, s.status) for s in states if s.done and s.job.kind == "run"})
        return "\n".join(plain(*table) for table in status_tables(states)), all(s.done for s in states)

    text, done = look()
    console = Console()
    if once or not console.is_terminal:
        click.echo(text)
        return
    with Live(Text(text), console=console, auto_refresh=False) as live:
        while not done:
            time.sleep(every)
            text, done = look()
            live.update(Text(text), refresh=True)
