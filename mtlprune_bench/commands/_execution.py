"""What the commands that execute runs share: the options of runners, and what is said as runs end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtlprune_bench.commands._completion import BLOCKED, completing

if TYPE_CHECKING:
    from mtlprune_bench.runs.jobs import Outcome
    from mtlprune_bench.store import Store

F = TypeVar("F", bound=Callable[..., Any])


def _without_tensorboard(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Block the observer that writes event files, in workers too."""
    if value:
        ctx.meta[BLOCKED] = (*ctx.meta.get(BLOCKED, ()), "observers.tensorboard")


def execution_options(function: F) -> F:
    """Add the options that say where runs are executed."""
    options = [
        click.option(
            "--runner",
            metavar="NAME",
            shell_complete=completing("runners"),
            help="What executes the runs: local, ray, slurm, ... [local]",
        ),
        click.option(
            "--devices",
            type=click.IntRange(min=1),
            metavar="N",
            help="Devices that one run is shared out over. [1]",
        ),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "bf16", "fp16", "fp64"]),
            help="Of forward passes in training. [fp32]",
        ),
        click.option("--workers", type=click.IntRange(min=0), metavar="N", help="Processes side by side."),
        click.option(
            "--ray-address", metavar="HOST:PORT", help="Ray cluster to join; auto: the one running here."
        ),
        click.option(
            "--no-tensorboard",
            is_flag=True,
            callback=_without_tensorboard,
            expose_value=False,
            help="Write no event files of TensorBoard, as where it is not installed.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def execution_settings(options: dict[str, Any]) -> list[str]:
    """Return, as lines of settings, what the options of execution say, which are taken out of `options`."""
    name, workers, address = (options.pop(key) for key in ("runner", "workers", "ray_address"))
    name = name or ("ray" if address else None)
    given = {"name": name, "workers": workers, "address": address}
    devices, precision = options.pop("devices"), options.pop("precision")
    given = {f"runner.{key}": value for key, value in given.items()}
    given |= {"engine.devices": devices, "train.precision": precision, "finetune.precision": precision}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def notice(text: str) -> None:
    """Print what a user should know before runs begin."""
    click.secho(text, err=True, fg="yellow", bold=True)


def report(outcomes: Iterable[Outcome], store: Store) -> int:
    """Print how each job ends, then the tables of the runs among them; return the exit code."""
    from mtlprune_bench.results.comparisons import comparisons
    from mtlprune_bench.results.render import terminal

    ended = {}
    for outcome in outcomes:
        ended[outcome.name] = outcome
        words = f"{outcome.name} {outcome.status}" + (f": {outcome.reason}" if outcome.reason else "")
        click.secho(words, err=True, fg=None if outcome.good else "red")
    rows = store.rows()
    for comparison in comparisons(rows[rows["run"].isin(list(ended))]):
        click.echo(f"\n{terminal(comparison)}")
    return 0 if all(outcome.good for outcome in ended.values()) else 1
