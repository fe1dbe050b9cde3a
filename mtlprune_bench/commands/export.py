"""`mtlbench export`: the network of a run as files for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from mtlprune_bench.commands._options import plugin_options, registry_of, store_option

FORMATS = ("safetensors", "pytorch", "packed", "onnx")


@click.command()
@click.argument("run")
@click.option(
    "--format", "formats", multiple=True, type=click.Choice(FORMATS), help="Format; may be repeated. [all]"
)
@click.option("--size", metavar="HxW", help="Size of the images that ONNX takes. [the test set's]")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), help="Folder. [export, in the run's folder]"
)
@click.option("--data-root", metavar="DIR", help="Folder with the dataset's files, where it is another one now.")
@store_option
@plugin_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    run: str,
    formats: tuple[str, ...],
    size: str | None,
    output: Path | None,
    data_root: str | None,
    store: Path,
) -> None:
    """Write the masked network of a run to files, and prove that they give its outputs.

    RUN is its id, or as much of the beginning or the end as tells it from others. Each file is read back into a
    new network, whose outputs on a test image have to be equal, or for ONNX, run by onnxruntime, within the
    tolerance that is printed. "packed" is small: one bit a weight, and the values of those that are kept.
    """
    from mtlprune_bench.export.formats import FORMATS as KNOWN
    from mtlprune_bench.export.formats import ONNX, export, missing_packages, open_subject
    from mtlprune_bench.results.render import plain
    from mtlprune_bench.store import Store

    folder = Store(store).find(run)
    subject = open_subject(folder, registry_of(ctx), size, data_root)
    chosen = list(dict.fromkeys(formats or FORMATS))
    if not formats and (missing := missing_packages()):
        chosen.remove(ONNX)
        click.secho(
            f"No ONNX: {', '.join(missing)} not installed. pip install 'mtlprune-bench[onnx]'",
            err=True,
            fg="yellow",
        )
    rows = []
    for made in export(subject, chosen, output or folder / "export"):
        tolerance = KNOWN[made.format].tolerance
        outputs = f"within {made.difference:.1g} of the largest (allowed: {tolerance:g})" if tolerance else "equal"
        rows.append([made.path.name, f"{made.size / 1e6:.3f}", outputs])
    click.echo(
        plain(f"{folder.name} in {output or folder / 'export'}", rows, ["file", "MB", "outputs, read back"])
    )
