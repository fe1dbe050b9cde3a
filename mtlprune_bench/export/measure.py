"""Measuring: weights, multiplications, bytes, time and memory of a run's network, dense and by sparse kernels."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from mtlprune_bench.export.formats import FORMATS, Subject, deviations
from mtlprune_bench.export.kernels import pruned, sparse_copy, two_of_four
from mtlprune_bench.export.timing import WARM_UP, Timing, time_variants
from mtlprune_bench.pruning.components import discover, prunable
from mtlprune_bench.runs.stages import DISCOVERY_SIZE
from mtlprune_bench.store import WHOLE

UNUSED = "used by no task"
DENSE, MASKED, SPARSE = "not pruned", "masked", "sparse kernels"
UNSTEADY = 0.25
"""Distance of the quartiles, as a fraction of the median, above which times are not to be relied on."""

CLOSE = 1e-3
"""How far an output of sparse kernels may be from that of dense ones, as a fraction of the largest."""


@dataclass(frozen=True)
class Part:
    """The prunable weights of a component: how many, how many are not zero, and multiplications for one image.

    `macs` are multiplications, each with an addition, by all weights; `sparse_macs` by those that are not zero.
    """

    name: str
    weights: int
    nonzero: int
    macs: int
    sparse_macs: int


@dataclass(frozen=True)
class Measured:
    """What was measured of a run's network; `size` is the image's (H, W), `files` are bytes by kind of file."""

    run: str
    size: tuple[int, int]
    parameters: int
    parts: tuple[Part, ...]
    files: Mapping[str, int]
    timings: tuple[Timing, ...]
    device: str
    threads: int
    repeats: int
    notes: tuple[str, ...]


def measure(subject: Subject, device: torch.device, repeats: int, threads: int = 1) -> Measured:
    """Return all numbers of the network of `subject` on its image.

    Timings are of `repeats` passes on `device`, with so many `threads` of the processor; several wait for each
    other, and on a busy machine that is most of what is measured.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measure(subject, device, repeats)
    finally:
        torch.set_num_threads(before)


def _measure(subject: Subject, device: torch.device, repeats: int) -> Measured:
    variants, notes = variants_of(subject, device)
    timings = time_variants(variants, subject.images.to(device), repeats)
    height, width = subject.images.shape[-2:]
    return Measured(
        run=subject.experiment.config.run_id,
        size=(height, width),
        parameters=sum(parameter.numel() for parameter in subject.network.parameters()),
        parts=tuple(count(subject.network, subject.images)),
        files=file_sizes(subject),
        timings=timings,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        repeats=repeats,
        notes=(*findings(timings), *notes),
    )


def count(network: nn.Module, images: Tensor) -> list[Part]:
    """Return the parts of `network`: the whole, each component, and weights that no task uses, if there are any.

    Multiplications are for one of `images` [B, 3, H, W], in convolutions and linear layers alone.
    """
    weights = prunable(network)
    places = _places(network, images)
    blank = torch.zeros(1, 3, DISCOVERY_SIZE, DISCOVERY_SIZE, dtype=images.dtype, device=images.device)
    components = discover(network, blank)
    unused = tuple(name for name in weights if name not in components.users)
    groups = {WHOLE: tuple(weights), **components.by_name(), **({UNUSED: unused} if unused else {})}
    nonzero = {name: int(torch.count_nonzero(weight)) for name, weight in weights.items()}
    return [
        Part(
            group,
            sum(weights[name].numel() for name in names),
            sum(nonzero[name] for name in names),
            sum(weights[name].numel() * places[name] for name in names),
            sum(nonzero[name] * places[name] for name in names),
        )
        for group, names in groups.items()
    ]


def _places(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Return how often each prunable weight is multiplied for one image: once at each place of its layer's output.

    A transposed convolution multiplies at each place of its input instead.
    """
    names = {id(weight): name for name, weight in prunable(network).items()}
    places = dict.fromkeys(names.values(), 0)

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, _ConvNd):
            read = inputs[0] if isinstance(layer, _ConvTransposeNd) else output
            found = read[0, 0].numel()
        else:
            found = output.numel() // output.shape[-1] // len(images)
        places[names[id(layer.weight)]] += found

    layers = [layer for layer in network.modules() if isinstance(layer, _ConvNd | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.inference_mode():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return places


def file_sizes(subject: Subject) -> dict[str, int]:
    """Return the bytes of the network in a file: dense, the same compressed by gzip, and packed."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in ("safetensors", "packed")}
        for name, path in paths.items():
            FORMATS[name].write(subject, path)
        dense = paths["safetensors"].read_bytes()
        packed = paths["packed"].stat().st_size
    return {"as stored": len(dense), "as stored, by gzip": len(gzip.compress(dense, 6)), "packed": packed}


def variants_of(subject: Subject, device: torch.device) -> tuple[dict[str, nn.Module], list[str]]:
    """Return the variants of the network of `subject` that can be timed on `device`, and why others cannot.

    The dense one has its weights from before training: the same layers, none of whose weights is removed.
    """
    dense = subject.experiment.build_model(device).eval()
    masks = {name: mask.to(device) for name, mask in pruned(subject.masks).items()}
    if not masks:
        return {DENSE: dense}, ["Nothing is pruned in this network: there is only the dense one to measure."]
    masked = subject.experiment.build_model(device).eval()
    masked.load_state_dict(subject.network.state_dict())
    variants = {DENSE: dense, MASKED: masked}
    try:
        sparse = sparse_copy(masked, masks)
        with torch.inference_mode():
            images = subject.images.to(device)
            far = max(deviations(masked(images), sparse.network(images)).values())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        return variants, [
            f"Torch has no kernels for these sparse matrices on {device}: {reason}.",
            _pattern(masks),
        ]
    if not far <= CLOSE:  # also where it is not a number
        note = f"Sparse kernels are not measured: their outputs are off by {far:.2g} of the largest."
        return variants, [note, _pattern(masks)]
    notes = [_pattern(masks)]
    if sparse.left:
        names = ", ".join(sparse.left[:3]) + (", ..." if len(sparse.left) > 3 else "")
        notes.append(f"Pruned layers that stay dense, as torch has no sparse kernels of their type: {names}.")
    return {**variants, SPARSE: sparse.network}, notes


def findings(timings: Sequence[Timing]) -> list[str]:
    """Return in words how the variants compare with the dense network, which comes first.

    One is called faster or slower only where the middle halves of their times do not overlap.
    """
    dense, *others = timings
    notes = []
    for timing in others:
        ratio = f"{timing.median / dense.median:.2f} times as long as the dense network"
        if timing.variant == MASKED:
            notes.append(
                "Masks alone save no time, as dense kernels multiply zeros like other numbers: the masked network "
                f"takes {ratio}, which is 1 but for noise."
            )
        elif timing.high < dense.low:
            notes.append(f"Sparse kernels are faster here: they take {ratio}.")
        elif timing.low > dense.high:
            notes.append(
                f"Sparse kernels are no speed-up here: they take {ratio}. Dense kernels do many multiplications "
                "at once, while scattered weights are looked up one by one."
            )
        else:
            notes.append(f"Sparse kernels make no clear difference here: they take {ratio}.")
    if any(timing.high - timing.low > UNSTEADY * timing.median for timing in timings):
        notes.append("Times vary much from pass to pass: the machine was busy. Measure again when it is not.")
    return notes


def _pattern(masks: Mapping[str, Tensor]) -> str:
    """Return in words whether the 2:4 kernels of GPUs could be used."""
    return (
        "2:4 kernels of GPUs need at most two of any four neighbouring weights, which the masks of "
        f"{two_of_four(masks)} of {len(masks)} pruned layers keep to."
    )


def tables(measured: Measured) -> list[tuple[str, list[list[str]], list[str]]]:
    """Return titled tables, as (title, rows, headings), of what was measured."""
    height, width = measured.size
    dense = measured.timings[0].median
    parts = [
        [
            part.name,
            f"{part.weights:,}",
            f"{part.nonzero:,}",
            f"{100 * (1 - part.nonzero / part.weights):.2f}",
            f"{part.macs / 1e6:,.2f}",
            f"{part.sparse_macs / 1e6:,.2f}",
            f"{100 * part.sparse_macs / part.macs:.2f}" if part.macs else "",
        ]
        for part in measured.parts
    ]
    times = [
        [
            timing.variant,
            f"{timing.median:.3f}",
            f"{timing.low:.3f} to {timing.high:.3f}",
            f"{timing.median / dense:.2f}",
            f"{timing.weight_bytes / 1e6:.3f}",
            f"{timing.activation_bytes / 1e6:.3f}",
        ]
        for timing in measured.timings
    ]
    files = [[name, f"{size / 1e6:.3f}"] for name, size in measured.files.items()]
    image = f"one image of {height} x {width} pixels"
    place = f"{measured.device}, {measured.threads} thread{'s' if measured.threads > 1 else ''}"
    return [
        (
            f"{measured.run}: {measured.parameters:,} parameters; multiplications are of convolutions and linear "
            f"layers, for {image}",
            parts,
            ["prunable weights", "number", "not zero", "zero %", "MACs, million", "of non-zeros", "%"],
        ),
        ("size in a file", files, ["file", "MB"]),
        (
            f"time for {image}: median of {measured.repeats} passes, after {WARM_UP} not counted; {place}",
            times,
            ["network", "ms", "quartiles", "x dense", "weights MB", "activations MB"],
        ),
    ]
