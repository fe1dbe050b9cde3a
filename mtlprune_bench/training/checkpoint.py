"""Checkpoints: named tensors with a few facts in one safetensors file that carries its own checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mtlprune_bench.errors import StoreError, UsageError
from mtlprune_bench.files import discard, write_atomic
from mtlprune_bench.pruning.masks import Masks, pack, unpack

T = TypeVar("T")
HEADER = "mtlprune-bench"
WEIGHTS = "weights.safetensors"
MASKS = "masks.safetensors"
SCORES = "scores.safetensors"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write `tensors` and JSON-like `facts` to `path`, whole or not at all. Raises StoreError."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts or {}, sort_keys=True)
    # One key: safetensors writes several in random order, and equal contents must be equal files.
    metadata = {HEADER: json.dumps([_digest(plain, text), text])}
    write_atomic(path, lambda temporary: _write(temporary, plain, metadata))


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        safetensors.torch.save_file(tensors, path, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error  # a full disk, which safetensors does not say as others do


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors (on the CPU) and facts of `path`, or None where there is no such file.

    A damaged file is moved aside, with a warning, and counts as missing: its maker makes it again.
    """
    return _load(path, lambda tensors, facts: (tensors, facts))


def _load(path: Path, make: Callable[[dict[str, Tensor], dict[str, Any]], T]) -> T | None:
    """Return what `make` makes of the tensors and facts of `path`, or None, as `load_tensors` does.

    Raises StoreError where the file cannot be opened or read now, which does not mean that it is damaged.
    """
    if not path.exists():
        return None
    try:
        return make(*_read(path))
    except DAMAGED as error:
        discard(path, error)
        return None
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror or error}. Try again when it can be.") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that a user named, which is left where it is. Raises UsageError."""
    try:
        return _read(path)[0]
    except Exception as error:  # what somebody has made up may be wrong in any way
        raise UsageError(f"{path} cannot be read as the weights of a run: {error}.") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path.open("rb").close()  # safetensors says of any file that cannot be opened that there is none
    with safetensors.safe_open(path, framework="pt") as file:
        digest, facts = json.loads((file.metadata() or {})[HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if digest != _digest(tensors, facts):
        raise ValueError("the checksum does not fit")
    return tensors, json.loads(facts)


def verify_tensors(path: Path) -> None:
    """Raise ValueError where the file `path` is not as it was written, OSError where it cannot be read."""
    try:
        _read(path)
    except DAMAGED as error:
        raise ValueError(str(error)) from error


DAMAGED = (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError, IndexError)
"""What reading a file raises that is not as it was written."""


def save_masks(path: Path, masks: Masks) -> None:
    """Write `masks` to `path` at one bit a weight. Raises StoreError."""
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    save_tensors(path, {name: pack(mask) for name, mask in masks.items()}, {"shapes": shapes})


def load_masks(path: Path) -> dict[str, Tensor] | None:
    """Return the masks of `path`, or None where there is no such file, as `load_tensors` does."""
    return _load(path, _unpacked)


def read_masks(path: Path) -> dict[str, Tensor]:
    """Return the masks of a file that a user named, which is left where it is. Raises UsageError."""
    try:
        return _unpacked(*_read(path))
    except Exception as error:  # what somebody has made up may be wrong in any way
        raise UsageError(f"{path} cannot be read as masks: {error}.") from error


def _unpacked(bits: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: unpack(bits[name], shape) for name, shape in facts["shapes"].items()}


def save_scores(path: Path, scores: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `scores`, by voter and weight, to `path`. Raises StoreError."""
    tensors = {
        f"{number}.{name}": score for number, own in enumerate(scores.values()) for name, score in own.items()
    }
    save_tensors(path, tensors, {"voters": list(scores)})


def load_scores(path: Path) -> dict[str, dict[str, Tensor]] | None:
    """Return the scores of `path`, or None where there is no such file, as `load_tensors` does."""
    return _load(path, _by_voter)


def _by_voter(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    scores: dict[str, dict[str, Tensor]] = {voter: {} for voter in facts["voters"]}
    voters = list(scores.values())
    for key, score in tensors.items():
        number, _, name = key.partition(".")
        voters[int(number)][name] = score
    return scores


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    """Return the SHA-256 over names, types, shapes, bytes and facts."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
