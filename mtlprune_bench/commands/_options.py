"""Options that several commands share."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mtlprune_bench.experiment import Request
    from mtlprune_bench.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])
DEBUG = "--debug"
PLUGINS = "mtlbench.plugins"
BLOCKED = "mtlbench.blocked"


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
    from mtlprune_bench.registry import load_registry

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
        click.option("--method", "methods", multiple=True, metavar="NAME[,NAME]", help="Pruning methods."),
        click.option("--dataset", metavar="NAME", help="Dataset."),
        click.option("--model", metavar="NAME", help="Model; default: the dataset's."),
        click.option("--sparsity", metavar="S[,S]", help="Fractions of weights removed, in [0, 1). [0.9]"),
        click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 0 to N - 1. [1]"),
        click.option("--protocol", metavar="NAME", help="standard, or disparse to compare with the papers."),
        click.option("--data-root", metavar="DIR", help="Folder with the dataset's files."),
        click.option("--require-real", is_flag=True, help="Stop where the files are not found: no stand-in."),
        click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N. [auto]"),
        *(
            click.option(f"--{axis}", metavar="NAME", help=f"Another choice for the method's {axis}.")
            for axis in AXES
        ),
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="As in train.lr=1e-3."),
        click.option(
            "--config",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="TOML file with any of these, under [run], and settings by section.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


AXES = ("score", "scope", "arbiter", "allocation", "schedule")
RUN_KEYS = ("method", "dataset", "model", "sparsity", "seeds", "protocol")


def requests(options: dict[str, Any]) -> list[Request]:
    """Return one request for each method, sparsity and seed that `options` and their config file name.

    The command line wins over the file. Raises UsageError for what cannot be read.
    """
    from mtlprune_bench.errors import UsageError
    from mtlprune_bench.experiment import Request

    run, settings = _merged(options)
    methods = _words(run.get("method"))
    if not methods or not run.get("dataset"):
        missing = "--method" if not methods else "--dataset"
        raise UsageError(f"{missing} is missing, as in: mtlbench run --method disparse-static --dataset nyuv2")
    seeds = run.get("seeds", 1)
    if type(seeds) is not int or seeds < 1:
        raise UsageError(f"Seeds are {seeds!r}; give the number of seeds, 1 or more.")
    return [
        Request(
            method=method,
            dataset=run["dataset"],
            model=run.get("model"),
            sparsity=sparsity,
            seed=seed,
            protocol=run.get("protocol", "standard"),
            settings=settings,
        )
        for sparsity in _sparsities(run.get("sparsity", "0.9"))
        for method in methods
        for seed in range(seeds)
    ]


def _merged(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the [run] part and the settings, of the config file and then of the command line."""
    from mtlprune_bench.config import merge_settings, parse_settings

    file = _read_toml(options["config"]) if options["config"] else {}
    run = file.pop("run", {})
    _check_run(run)
    given = {"method": options["methods"] or None, **{key: options[key] for key in RUN_KEYS if key != "method"}}
    run |= {key: value for key, value in given.items() if value is not None}
    lines = [f"method.{axis}={options[axis]}" for axis in AXES if options[axis]]
    lines += [f"data.root={options['data_root']}"] if options["data_root"] else []
    lines += ["data.require_real=true"] if options["require_real"] else []
    lines += [f"engine.device={options['device']}"] if options["device"] else []
    settings = merge_settings(file, parse_settings([*lines, *options["assignments"]]))
    return run, settings


def _check_run(run: Any) -> None:
    """Raise UsageError for what cannot be the [run] part of a file."""
    from mtlprune_bench.errors import UsageError, unknown

    if not isinstance(run, dict):
        raise UsageError(f"'run' is a section; write [run] above its keys, not run = {run!r}.")
    for key, value in run.items():
        if key not in RUN_KEYS:
            raise unknown("key in [run]", key, RUN_KEYS)
        names = value if key == "method" and isinstance(value, list) else [value]
        if key not in ("sparsity", "seeds") and not all(isinstance(name, str) for name in names):
            raise UsageError(f"{key} in [run] is {value!r}; it must be a name in quotes.")


def _read_toml(path: Path) -> dict[str, Any]:
    from mtlprune_bench.errors import UsageError

    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.") from error


def _words(value: Any) -> list[str]:
    """Return the names in "a,b", in a list of such, or in a TOML list, each once."""
    parts = [value] if isinstance(value, str) else list(value or ())
    names = [name.strip() for part in parts for name in str(part).split(",")]
    return list(dict.fromkeys(name for name in names if name))


def _sparsities(value: Any) -> list[float]:
    from mtlprune_bench.errors import UsageError

    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        return list(dict.fromkeys(float(part) for part in parts))
    except (TypeError, ValueError):
        raise UsageError(f"Sparsity '{value}' is no list of numbers, such as 0.5,0.9.") from None
