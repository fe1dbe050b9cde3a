"""`mtlbench plugin`: begin a plugin of your own, and hold anybody's to the contract."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mtlprune_bench.commands._options import PLUGINS, NearestGroup, plugin_options, registry_of
from mtlprune_bench.host.scaffold import KINDS

if TYPE_CHECKING:
    from mtlprune_bench.host.registry import Registry
    from mtlprune_bench.testing import Verdict

MARKS = {True: ("✓", "passed", "green"), False: ("✗", "FAILED", "red"), None: ("–", "not asked", "bright_black")}
"""How a verdict looks on a terminal, elsewhere, and in which colour."""


@click.group(cls=NearestGroup)
@plugin_options
def command() -> None:
    """Begin a plugin of your own, and hold anybody's to the contract.

    Start with: mtlbench plugin new my-method --kind method
    """


@command.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What the plugin brings.")
@click.option("--file", "single", is_flag=True, help="One file for --plugin, and no package.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder in which it is written. [the current one]",
)
@plugin_options
@click.pass_context
def new(ctx: click.Context, name: str, kind: str, single: bool, output: Path) -> None:
    """Write a small plugin that works as it is: a package with its test, or one file.

    NAME is what it is called everywhere: small letters, digits and hyphens. Nothing is overwritten.
    """
    from mtlprune_bench.errors import UsageError
    from mtlprune_bench.host.scaffold import module_name, use_of, write_file, write_package

    module_name(name)  # before plugins are loaded, which takes seconds
    registry = registry_of(ctx)
    if (f"{kind}s", name) in registry.entries or registry.manager.has_plugin(name):
        raise UsageError(
            f"There is a {kind} or a plugin '{name}' already; mtlbench ls {name} says more. Take another name."
        )
    if single:
        path = write_file(name, kind, output)
        check, use = f"mtlbench plugin check {path}", f"{use_of(name, kind)} --plugin {path}"
    else:
        path = write_package(name, kind, output)
        check, use = f"pip install -e {path}\nmtlbench plugin check {name}", use_of(name, kind)
    files = "" if single else ": " + ", ".join(sorted(file.name for file in path.iterdir()))
    click.echo(f"Wrote {path}{files}. It works as it is; edit it, then:\n{check}\n{use}")


@command.command()
@click.argument("target")
@click.option("--only", multiple=True, metavar="CHECK", help="Only this check, such as sparsity; repeatable.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Settings of the runs, as in train.steps=20."
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdicts as JSON.")
@plugin_options
@click.pass_context
def check(
    ctx: click.Context, target: str, only: tuple[str, ...], assignments: tuple[str, ...], as_json: bool
) -> int:
    """Hold all that a plugin registers to the contract, and print a verdict a line; exit 1 where one fails.

    TARGET is a registered name, a plugin's .py file or module, or an installed distribution. Checks take seconds
    and need no data: networks and images are tiny.
    """
    import tempfile

    from mtlprune_bench.runs.request import parse_settings
    from mtlprune_bench.testing import subjects, verdicts

    given = ctx.meta.get(PLUGINS, ())

    def load(more: Sequence[str]) -> Registry:
        ctx.meta[PLUGINS] = (*given, *more)
        return registry_of(ctx)

    settings = parse_settings(assignments)
    registry, found = subjects(target, load)
    made, heading = [], ""
    with tempfile.TemporaryDirectory() as folder:
        for verdict in verdicts(found, registry, Path(folder), only, settings):
            made.append(verdict)
            if not as_json:
                heading = _print(verdict, heading)
    if as_json:
        click.echo(json.dumps([_plain(verdict) for verdict in made], indent=2))
    else:
        counts = [sum(verdict.passed is kind for verdict in made) for kind in (True, False, None)]
        click.echo("{} passed, {} failed, {} not asked.".format(*counts))
    return int(any(verdict.passed is False for verdict in made))


def _print(verdict: Verdict, heading: str) -> str:
    """Print a verdict, below its subject where that is not `heading`; return its subject."""
    if str(verdict.subject) != heading:
        click.secho(str(verdict.subject), bold=True)
    tick, word, colour = MARKS[verdict.passed]
    mark = click.style(tick if sys.stdout.isatty() else f"{word:<9}", fg=colour)
    said = {True: verdict.asks, False: "", None: verdict.reason}[verdict.passed]
    click.echo(f"  {mark} {verdict.check:<9} {said}".rstrip())
    if verdict.passed is False:
        click.echo(textwrap.indent(verdict.reason, "      "))
    return str(verdict.subject)


def _plain(verdict: Verdict) -> dict[str, str | bool | None]:
    """Return a verdict as JSON has it."""
    return {
        "kind": verdict.subject.kind.removesuffix("s"),
        "name": verdict.subject.name,
        "check": verdict.check,
        "asks": verdict.asks,
        "passed": verdict.passed,
        "reason": verdict.reason,
    }
