"""Export: the masked network of a run in files that other programs read, each reloaded to prove equal outputs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.export.packing import pack_weights, unpack_weights
from mtlprune_bench.files import write_atomic
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.pruning.masks import Masks
from mtlprune_bench.runs.experiment import Experiment
from mtlprune_bench.runs.reopening import final_network, first_image, reopen
from mtlprune_bench.store import Store
from mtlprune_bench.tensors import NamedTensors
from mtlprune_bench.training.checkpoint import read_weights, save_tensors

ONNX = "onnx"
NEEDED = ("onnx", "onnxruntime", "onnxscript")
"""The packages without which there is no ONNX; the extra "onnx" brings them."""

TOLERANCE = 1e-4
"""How far an output of ONNX may be from PyTorch's, as a fraction of the largest: sums are in another order."""

LARGEST = 2_000_000_000
"""Bytes of weights above which ONNX needs more than one file."""


@dataclass(frozen=True)
class Subject:
    """What is exported: a run's final network, its masks, and images [1, 3, H, W] to compare outputs on."""

    experiment: Experiment
    network: nn.Module
    masks: Masks
    images: Tensor

    def batch(self, count: int) -> Tensor:
        """Return up to 3 images, which differ: the first one, and what mirrors show of it."""
        return torch.cat([self.images, self.images.flip(-1), self.images.flip(-2)])[:count]

    def state(self) -> dict[str, Tensor]:
        """Return copies of the network's tensors, by the names of its state dict."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    def facts(self) -> dict[str, str]:
        """Return what a file says of itself."""
        config = self.experiment.config
        return {"run": config.run_id, "model": config.model, "dataset": config.dataset}


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    `size` is in bytes, `difference` the largest of outputs from those of the run, as a fraction of the largest
    output, on as many `images`.
    """

    format: str
    path: Path
    size: int
    difference: float
    images: int


@dataclass(frozen=True)
class Format:
    """A kind of file: how it is written, and the outputs on images [B, 3, H, W] of what is read back from it.

    Outputs may differ by the fraction `tolerance` of the largest; they are compared on as many `images`.
    """

    suffix: str
    write: Callable[[Subject, Path], None]
    outputs: Callable[[Subject, Path, Tensor], Mapping[str, Tensor]]
    tolerance: float = 0.0
    images: int = 1


def image_size(text: str) -> tuple[int, int]:
    """Return the (height, width) in pixels that `text`, such as 288x384, says. Raises UsageError."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UsageError(f"'{text}' is no size of an image; write HEIGHTxWIDTH in pixels, such as 288x384.")
    return int(height), int(width)


def open_subject(
    folder: Path, registry: Registry, size: str | None = None, data_root: str | None = None
) -> Subject:
    """Return the network of the run in `folder`, with an image of `size`, None the first of the test set.

    Raises UsageError where it cannot be rebuilt or does not take such images, DataError where its data are
    missing, and StoreError where its weights are.
    """
    experiment = reopen(folder, registry, data_root)
    network, masks = final_network(experiment, Store(folder.parent))
    images = first_image(experiment, image_size(size) if size else None)
    try:
        with torch.inference_mode():
            network(images)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"The network does not take images of {images.shape[-2]}x{images.shape[-1]} pixels: {reason}. "
            "Choose another --size."
        ) from error
    return Subject(experiment, network, masks, images)


def missing_packages() -> list[str]:
    """Return those of the packages that ONNX needs that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def export(subject: Subject, formats: Sequence[str], folder: Path) -> Iterator[Exported]:
    """Write the network of `subject` to `folder` in each of `formats`, names of FORMATS; yield each checked file.

    Raises UsageError where a network cannot be written in a format, and StoreError where a file cannot be written
    or does not give the outputs of the network: then it is not left there.
    """
    for name in formats:
        form = FORMATS[name]
        path = folder / f"{subject.experiment.config.run_id}{form.suffix}"
        found: list[float] = []

        def write(temporary: Path, form: Format = form, name: str = name, found: list[float] = found) -> None:
            form.write(subject, temporary)
            found.append(check(subject, form, name, temporary))

        write_atomic(path, write)
        yield Exported(name, path, path.stat().st_size, found[0], form.images)


def check(subject: Subject, form: Format, name: str, path: Path) -> float:
    """Return how far the outputs of the file `path` are from the network's, as a fraction of the largest output.

    Raises StoreError where that is more than the format's tolerance.
    """
    images = subject.batch(form.images)
    with torch.inference_mode():
        expected = subject.network(images)
        found = form.outputs(subject, path, images)
    far_by_task = deviations(expected, found)
    for task, far in far_by_task.items():
        if not far <= form.tolerance:  # also where it is not a number
            raise StoreError(
                f"The network reloaded from {name} differs in '{task}' by {far:.2g} of the largest output, which "
                f"must be at most {form.tolerance:g}. No file was left."
            )
    return max(far_by_task.values())


def deviations(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    """Return for each task how far its output is from the one expected, as a fraction of the largest expected."""
    return {
        task: float(
            (found[task] - output).abs().max() / output.abs().max().clamp_min(torch.finfo(output.dtype).tiny)
        )
        for task, output in expected.items()
    }


def _reloaded(subject: Subject, tensors: NamedTensors, images: Tensor) -> Mapping[str, Tensor]:
    """Return the outputs of a network newly built with `tensors`, which must be the run's to the last one."""
    for name, tensor in subject.state().items():
        if name not in tensors or not torch.equal(tensors[name], tensor):
            raise StoreError(f"'{name}' was not read back as it was written. No file was left.")
    network = subject.experiment.build_model(torch.device("cpu"))
    network.load_state_dict(dict(tensors))
    outputs: Mapping[str, Tensor] = network.eval()(images)
    return outputs


def _write_safetensors(subject: Subject, path: Path) -> None:
    save_tensors(path, subject.state(), subject.facts())


def _safetensors_outputs(subject: Subject, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    return _reloaded(subject, read_weights(path), images)


def _write_pytorch(subject: Subject, path: Path) -> None:
    torch.save(subject.state(), path)


def _pytorch_outputs(subject: Subject, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    return _reloaded(subject, torch.load(path, map_location="cpu", weights_only=True), images)


def _write_packed(subject: Subject, path: Path) -> None:
    save_tensors(path, pack_weights(subject.state(), subject.masks), subject.facts())


def _packed_outputs(subject: Subject, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    return _reloaded(subject, read_packed(path), images)


def read_packed(path: Path) -> dict[str, Tensor]:
    """Return the state dict, zeros where weights were removed, of a packed file. Raises UsageError."""
    return unpack_weights(read_weights(path))


class _InOrder(nn.Module):
    """A network whose outputs are a tuple, in the order of `tasks`: ONNX has no dicts."""

    def __init__(self, network: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.network(images)
        return tuple(outputs[task] for task in self.tasks)


def _write_onnx(subject: Subject, path: Path) -> None:
    if missing := missing_packages():
        raise UsageError(
            f"ONNX needs {', '.join(missing)}, which is not installed: pip install 'mtlprune-bench[onnx]'."
        )
    if subject.images.dtype != torch.float32:
        raise UsageError(
            "This run has fp64 weights, which onnxruntime does not compute with; take another format."
        )
    state = subject.state()
    if sum(tensor.nbytes for tensor in state.values()) > LARGEST:
        raise UsageError("An ONNX file holds 2 GB at most, and the network is larger; take another format.")
    tasks = list(subject.experiment.objective.tasks)
    with _quiet():
        try:
            program = torch.onnx.export(
                _InOrder(subject.network, tasks),
                (subject.batch(2),),  # a batch of one would be taken for a constant
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=tasks,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
        except torch.onnx.OnnxExporterError as error:
            reason = " ".join(str(error).split())[:300]
            raise UsageError(
                f"torch cannot write model '{subject.experiment.config.model}' as ONNX: {reason}. "
                "Take another format."
            ) from error
        assert program is not None, "the exporter returns a program unless it is given a file"
        program.save(path, external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from warning of its own parts."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _onnx_outputs(subject: Subject, path: Path, images: Tensor) -> Mapping[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {"images": images.numpy()})
    return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}


FORMATS: Mapping[str, Format] = {
    "safetensors": Format(".safetensors", _write_safetensors, _safetensors_outputs),
    "pytorch": Format(".pt", _write_pytorch, _pytorch_outputs),
    "packed": Format(".packed.safetensors", _write_packed, _packed_outputs),
    ONNX: Format(".onnx", _write_onnx, _onnx_outputs, TOLERANCE, images=3),
}
