"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mtlprune_bench.commands._completion import BLOCKED, PLUGINS, SETTINGS, completing

if TYPE_CHECKING:
    from mtlprune_bench.host.registry import Registry
    from mtlprune_bench.runs.request import Request

F = TypeVar("F", bound=Callable[..., Any])
DEBUG = "--debug"


class NearestGroup(click.Group):
    """A group of commands that proposes the nearest of them for a name that it does not know."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` begin with. Raises UsageError, with the nearest name, for none."""
        from mtlprune_bench.errors import unknown

        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            above = f"{ctx.info_name} " if ctx.parent else ""
            raise unknown("command", above + args[0], [above + name for name in self.list_commands(ctx)])
        return super().resolve_command(ctx, args)


def _remember(key: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], None]:
    """Return a callback that adds an option's values to what the whole command line shares."""

    def callback(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> None:
        ctx.meta[key] = (*ctx.meta.get(key, ()), *values)

    return callback


def plugin_options(function: F) -> F:
    """Add --plugin, --block and --debug, which may stand before or after the command's name."""
    options = [
        click.option(
            "--plugin",
            multiple=True,
            metavar="FILE|MODULE",
            callback=_remember(PLUGINS),
            expose_value=False,
            is_eager=True,
            help="Load a plugin, beside installed ones and those of MTLBENCH_PLUGINS.",
        ),
        click.option(
            "--block",
            multiple=True,
            metavar="PLUGIN",
            callback=_remember(BLOCKED),
            expose_value=False,
            is_eager=True,
            help="Do not load a plugin.",
        ),
        click.option(DEBUG, is_flag=True, expose_value=False, help="Show tracebacks."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def registry_of(ctx: click.Context, built_in: bool = True) -> Registry:
    """Return the registry with the plugins of this command line; failures are warned of, with tracebacks."""
    from mtlprune_bench.host.registry import load_registry

    registry = load_registry(ctx.meta.get(PLUGINS, ()), ctx.meta.get(BLOCKED, ()) if built_in else (), built_in)
    for failure in registry.failures if built_in else ():
        click.secho(
            f"Warning: plugin '{failure.plugin}' ({failure.origin}) could not be loaded: {failure.problem}",
            err=True,
            fg="yellow",
        )
        click.echo(failure.trace.rstrip(), err=True)
    return registry


store_option = click.option(
    "--store",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder of the results.",
)


def request_options(function: F) -> F:
    """Add the options that say which runs are meant."""
    options = [
        click.option(
            "--method",
            "methods",
            multiple=True,
            metavar="NAME[,NAME]",
            shell_complete=completing("methods"),
            help="Pruning methods.",
        ),
        click.option("--dataset", metavar="NAME", shell_complete=completing("datasets"), help="Dataset."),
        click.option(
            "--model",
            metavar="NAME",
            shell_complete=completing("models"),
            help="Model; default: the dataset's.",
        ),
        click.option("--sparsity", metavar="S[,S]", help="Fractions of weights removed, in [0, 1). [0.9]"),
        click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 0 to N - 1. [1]"),
        click.option("--protocol", metavar="NAME", help="standard, or disparse to compare with the papers."),
        click.option("--data-root", metavar="DIR", help="Folder with the dataset's files."),
        click.option("--require-real", is_flag=True, help="Stop where the files are not found: no stand-in."),
        click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N. [auto]"),
        *(
            click.option(
                f"--{axis}",
                metavar="NAME",
                shell_complete=completing(kind),
                help=f"Another choice for the method's {axis}.",
            )
            for axis, kind in AXES.items()
        ),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            shell_complete=completing(SETTINGS),
            help="As in train.lr=1e-3.",
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="TOML file with any of these, under [run], and settings by section.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


AXES = {
    "score": "scorers",
    "scope": "scopes",
    "arbiter": "arbiters",
    "allocation": "allocations",
    "schedule": "schedules",
}
"""The options that choose on an axis of a method, with the kind of what they name."""


def requests(options: dict[str, Any]) -> list[Request]:
    """Return one request for each method, sparsity and seed that `options` and their config file name.

    The command line wins over the file. Raises UsageError for what cannot be read.
    """
    from mtlprune_bench.runs.grid import RUN_KEYS, read_run, run_requests
    from mtlprune_bench.runs.request import merge_settings, parse_settings

    run, settings = read_run(options["config"]) if options["config"] else ({}, {})
    given = {"method": options["methods"] or None, **{key: options[key] for key in RUN_KEYS if key != "method"}}
    run |= {key: value for key, value in given.items() if value is not None}
    lines = [f"method.{axis}={options[axis]}" for axis in AXES if options[axis]]
    lines += [f"data.root={options['data_root']}"] if options["data_root"] else []
    lines += ["data.require_real=true"] if options["require_real"] else []
    lines += [f"engine.device={options['device']}"] if options["device"] else []
    return run_requests(run, merge_settings(settings, parse_settings([*lines, *options["assignments"]])))
