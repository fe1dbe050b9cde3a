"""`mtlbench published`: the numbers in the papers."""

from __future__ import annotations

import click

from mtlprune_bench.commands._options import plugin_options


@click.command()
@click.argument("dataset", required=False)
@plugin_options
def command(dataset: str | None) -> None:
    """List the tables of the papers as they are printed, all or those of DATASET, and what is doubtful in them.

    Names of methods, datasets and metrics are those of this suite, after the paper's own name of a method.
    `mtlbench table --published` sets them beside your results.
    """
    from mtlprune_bench.errors import unknown
    from mtlprune_bench.results.published import doubts, printed
    from mtlprune_bench.results.render import plain

    rows = [row for row in printed() if dataset in (None, row.dataset)]
    if not rows:
        raise unknown("dataset in print:", str(dataset), {row.dataset for row in printed()})
    tables = {
        (row.paper, row.table): [each for each in rows if (each.paper, each.table) == (row.paper, row.table)]
        for row in rows
    }
    for own in tables.values():
        first = own[0]
        headings = list(dict.fromkeys(heading for row in own for heading in row.texts))
        title = (
            f"{first.paper}, {first.table}, {first.address}: {first.dataset}; model {first.model}; {first.recipe}"
        )
        lines = [
            [
                row.name,
                f"{row.method} {row.settings}".strip(),
                f"{100 * row.sparsity:g}",
                *(row.texts.get(heading, "") for heading in headings),
            ]
            for row in own
        ]
        click.echo(
            plain(
                title,
                lines,
                ["printed", "here", "sparsity %", *(heading.replace(".", "\n", 1) for heading in headings)],
            )
        )
        for doubt in doubts(own):
            click.echo(f"- {doubt}")
        click.echo()
