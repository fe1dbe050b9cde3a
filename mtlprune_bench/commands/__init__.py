"""The command line: `mtlbench`. One file a command; none of them computes."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
import warnings
from typing import Any

import click

from mtlprune_bench import __version__
from mtlprune_bench.commands._options import DEBUG, NearestGroup, plugin_options, registry_of
from mtlprune_bench.errors import MtlbenchError


class Commands(NearestGroup):
    """The built-in commands, one a module of this package, and those that plugins register."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*self._built_in(), *self._registered(ctx)})

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command called `name`."""
        if name in self._built_in():
            command: click.Command = importlib.import_module(f"{__name__}.{name}").command
            return command
        return self._registered(ctx).get(name)

    def _built_in(self) -> list[str]:
        modules = [module.name for module in pkgutil.iter_modules(__path__)]
        return [name for name in modules if not name.startswith("_")]

    def _registered(self, ctx: click.Context) -> dict[str, click.Command]:
        """Return the commands of plugins; the built-in ones have none, so they need not be imported."""
        return {entry.name: entry.value for entry in registry_of(ctx, built_in=False).of_kind("commands")}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mtlbench")
@plugin_options
def cli() -> None:
    """Prune multitask networks with every published method, and compare them fairly.

    Start with: mtlbench run --method disparse-static --dataset nyuv2
    """


def main(arguments: list[str] | None = None) -> None:
    """Run `mtlbench` and exit: 0 for success, 2 for a request that cannot be carried out, 1 for other problems."""
    sys.exit(run_cli(sys.argv[1:] if arguments is None else arguments))


def run_cli(arguments: list[str]) -> int:
    """Run `mtlbench` with `arguments` and return the exit code. Problems are one line, without a traceback."""
    warnings.showwarning = _show_warning
    debug = DEBUG in arguments
    try:
        result = cli.main(arguments or ["--help"], prog_name="mtlbench", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _problem(error.format_message(), error.exit_code, debug)
    except (click.Abort, KeyboardInterrupt):
        return _problem("Stopped. What is stored is kept: give the same command again to go on.", 130, debug)
    except MtlbenchError as error:
        return _problem(str(error), error.exit_code, debug)
    except BrokenPipeError:
        return 1
    except Exception as error:
        text = f"{type(error).__name__}: {error}. This is a bug in mtlbench or a plugin; {DEBUG} shows where."
        return _problem(text, 1, debug)


def _problem(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.secho(f"Error: {' '.join(message.split())}", err=True, fg="red")
    return code


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    click.secho(f"Warning: {message}", err=True, fg="yellow")
