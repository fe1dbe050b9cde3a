"""`mtlbench store`: whether a store holds what was written to it, and what to do where it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from mtlprune_bench.commands._options import NearestGroup, plugin_options, store_option

if TYPE_CHECKING:
    from mtlprune_bench.runs.integrity import Folder

T = TypeVar("T")
PROGRESS = ("finished", "unfinished", "locked")
STATES = ("verified", "older", "unknown", "damaged")


@click.group(cls=NearestGroup)
def command() -> None:
    """Check every file of a store against its checksum, and move what is damaged aside."""


@command.command()
@store_option
@plugin_options
def check(store: Path) -> int:
    """Read every file of a store, and say which are not as they were written. Changes nothing.

    Verified: the checksum fits. Older: written by a version that had no checksum for it. Unknown: not read by any
    command, such as logs. Folders that a process is working on are locked, and left out. The exit code is 1 where
    a file is damaged.
    """
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.integrity import check, folders_of
    from mtlprune_bench.store import Store

    folders = folders_of(Store(store))
    found = [check(*folder) for folder in _shown(folders)]
    _summary(store, found)
    damaged = [file for folder in found for file in folder.damaged]
    if damaged:
        rows = [[str(file.path.relative_to(store)), file.problem] for file in damaged]
        click.echo(plain("damaged", rows, ["file", "what is wrong"]))
        click.secho(f"mtlbench store repair --store {store} moves it aside.", err=True, fg="red")
    return 1 if damaged else 0


@command.command()
@click.option("--again", is_flag=True, help="Also the numbers of runs whose weights are gone, to make all again.")
@store_option
@plugin_options
def repair(again: bool, store: Path) -> int:
    """Move what is damaged aside, and list what is computed again, by which command. Deletes nothing.

    What is moved is kept beside its place, as NAME.damaged-1. The numbers of a finished run stay when its weights
    are damaged, as they are good; --again moves them aside, too, so that the command makes the run once more.
    """
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.integrity import folders_of, repair
    from mtlprune_bench.store import Store

    opened = Store(store)
    done = list(_shown(repair(opened, again), len(folders_of(opened))))
    _summary(store, [folder for folder, _ in done])
    repairs = [each for _, repairs in done for each in repairs]
    if not repairs:
        click.echo("Nothing is damaged.")
        return 0
    rows = [[str(each.path.relative_to(store)), each.problem, each.outcome] for each in repairs]
    click.echo(plain("moved aside", rows, ["file", "what is wrong", "what becomes of it"]))
    commands = dict.fromkeys(each.command for each in repairs if each.command)
    for text in commands:
        click.echo(f"To make it again: {text}")
    return 0


def _shown(items: Iterable[T], total: int | None = None) -> Iterable[T]:
    """Return `items` with a progress bar where standard error is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, "Reading", total=total, console=console, transient=True, disable=not console.is_terminal)


def _summary(store: Path, folders: Iterable[Folder]) -> None:
    """Print how many folders and files are in which state, and which folders were left out."""
    from mtlprune_bench.results.render import plain

    progress: dict[str, Counter[str]] = {}
    states: dict[str, Counter[str]] = {}
    for folder in folders:
        progress.setdefault(folder.kind, Counter())[folder.progress] += 1
        states.setdefault(folder.kind, Counter()).update(file.state for file in folder.files)
        if folder.progress == "locked":
            click.secho(f"{folder.path.name} is left out: a process is working on it.", err=True, fg="yellow")
    rows = [
        [kind, *(str(ended[name]) for name in PROGRESS), *(str(states[kind][name]) for name in STATES)]
        for kind, ended in progress.items()
    ]
    headings = ["folders", *PROGRESS, *(f"{name} files" for name in STATES)]
    click.echo(plain(f"files in {store}", rows, headings))
