"""`mtlbench merge`: the results of several machines in one store."""

from __future__ import annotations

from pathlib import Path

import click

from mtlprune_bench.commands._options import plugin_options, store_option


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@store_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@plugin_options
def command(folders: tuple[Path, ...], store: Path, dry_run: bool) -> int:
    """Bring the runs of other stores, and the stages that they share, into one.

    A run that one store has finished replaces one that is not, which is kept in the folder "replaced". Runs that
    ended with different numbers clash: the store's stay, all others are named, and the exit code is 1.
    """
    from collections import Counter

    from mtlprune_bench.results.render import plain
    from mtlprune_bench.runs.merge import ENDS, merge
    from mtlprune_bench.store import Store

    counts: Counter[tuple[Path, str, str]] = Counter()
    for folder, merged in merge(folders, Store(store), dry_run):
        counts[folder, merged.kind, merged.end] += 1
        if merged.note:
            click.secho(f"{merged.name} {merged.end}: {merged.note}", err=True, fg="yellow")
        if merged.differences:
            title = f"clash: {merged.name}, which stays as it is in {store}"
            click.echo(plain(title, merged.differences, ["what differs", f"in {store}", f"in {folder}"]))
    rows = [
        [str(folder), f"{kind}s", *(str(counts[folder, kind, end]) for end in ENDS)]
        for folder, kind in dict.fromkeys((folder, kind) for folder, kind, _ in counts)
    ]
    title = f"would be merged into {store}" if dry_run else f"merged into {store}"
    click.echo(plain(title, rows, ["from", "what", *ENDS]))
    return 1 if any(end == "clash" for _, _, end in counts) else 0
