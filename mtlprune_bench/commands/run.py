"""`mtlbench run`: train, prune, evaluate and tabulate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mtlprune_bench.commands._execution import execution_options, execution_settings, notice, report
from mtlprune_bench.commands._options import (
    plugin_options,
    registry_of,
    request_options,
    requests,
    store_option,
)


@click.command()
@request_options
@execution_options
@store_option
@plugin_options
@click.pass_context
def command(ctx: click.Context, /, store: Path, **options: Any) -> int:
    """Run one or several methods, sparsities and seeds, and print their table.

    What the store holds already is not run again; what was interrupted continues.
    """
    from mtlprune_bench.runs.suite import run_all
    from mtlprune_bench.store import Store

    options["assignments"] = (*execution_settings(options), *options["assignments"])
    results = Store(store)
    return report(run_all(requests(options), results, registry_of(ctx), notice), results)
