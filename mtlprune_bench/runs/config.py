"""Configuration: what determines a run, how settings change it, and the hash that names it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mtlprune_bench.errors import UsageError, unknown
from mtlprune_bench.protocols import Protocol
from mtlprune_bench.pruning.learned import LearnedMethod
from mtlprune_bench.pruning.method import Method
from mtlprune_bench.recipe import Recipe
from mtlprune_bench.tasks import Labels
from mtlprune_bench.training.networks import MULTITASK, SMALL

T = TypeVar("T")
TRUE = {"true", "yes", "1"}
FALSE = {"false", "no", "0"}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines the numbers of a run, and nothing else.

    `data` is the fingerprint of the samples. `finetune` is None where the method does not fine-tune, so that
    its recipe does not matter. `checkpoint` is the checksum of a file of weights that training starts from.
    """

    method: Method | LearnedMethod
    sparsity: float
    seed: int
    dataset: str
    data: str
    labels: tuple[Labels, ...]
    loss_weights: Mapping[str, float]
    model: str
    model_settings: Any
    protocol: Protocol
    train: Recipe
    finetune: Recipe | None
    checkpoint: str = ""

    @property
    def recipe(self) -> Recipe:
        """Return the recipe by which the pruned network is trained."""
        return self.train if self.finetune is None else self.finetune

    @property
    def run_id(self) -> str:
        """Return the run's name: readable parts, then the hash of everything."""
        method = self.method.name.replace(":", "-")
        return f"{method}-{self.dataset}-{self.sparsity:g}-s{self.seed}-{digest(self)}"

    @property
    def dense_key(self) -> str:
        """Return the name of the dense training that every run with these data, model and recipe shares."""
        parts = ("seed", "dataset", "data", "labels", "loss_weights", "model", "model_settings", "protocol")
        shared = {part: getattr(self, part) for part in (*parts, "train")}
        network = getattr(self.method, "network", MULTITASK)
        if network != MULTITASK:
            shared |= {"network": network, "sparsity": self.sparsity if network == SMALL else 0.0}
        return f"dense-{self.dataset}-s{self.seed}-{digest(shared)}"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How runs are executed; none of it changes a number, but for the order of sums on several devices."""

    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda or cuda:N"})
    devices: int = field(
        default=1, metadata={"help": "devices that one run is shared out over; on the CPU, processes"}
    )
    workers: int = field(default=0, metadata={"help": "processes that read training samples; 0: none"})
    checkpoint_seconds: float = field(
        default=60.0, metadata={"help": "time between two checkpoints; what a kill can cost at most"}
    )

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise UsageError(f"devices of the engine is {self.devices}; it must be 1 or more.")
        for name in ("workers", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} of the engine is {getattr(self, name)}; it must be 0 or more.")


def describe(value: Any) -> Any:
    """Return `value` as plain JSON-like data.

    A dataclass becomes its class name with the fields that are not at their default, so that a field added
    later does not change the hash of what was there before; fields declared with `compare=False` are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            item.name: describe(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.compare and getattr(value, item.name) != _default(item)
        }
        return {"is": type(value).__name__, **changed}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    raise UsageError(f"{value!r} cannot be part of a configuration; use dataclasses, functions and numbers.")


def digest(value: Any) -> str:
    """Return 10 hexadecimal digits that depend on all of `describe(value)`."""
    text = json.dumps(describe(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def override(value: T, changes: Mapping[str, Any], where: str) -> T:
    """Return the dataclass `value` with `changes` to its fields, given as text or as TOML values.

    Raises UsageError, naming `where`, for an unknown field or a value of the wrong type.
    """
    if not isinstance(changes, Mapping):
        raise UsageError(f"'{where}' is a section of settings; write {where}.NAME = {changes!r}.")
    known = {item.name: item for item in dataclasses.fields(value) if item.init}  # type: ignore[arg-type]
    kinds = typing.get_type_hints(type(value))
    converted = {}
    for name, given in changes.items():
        if name not in known:
            raise unknown("setting", f"{where}.{name}", [f"{where}.{key}" for key in known])
        converted[name] = convert(given, kinds[name], f"{where}.{name}")
    return dataclasses.replace(value, **converted)  # type: ignore[type-var]


def convert(given: Any, kind: Any, where: str) -> Any:
    """Return `given`, text or a TOML value, as `kind`. Raises UsageError naming `where`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if given is None or (type(None) in arguments and str(given).lower() == "none"):
            return None
        return convert(given, next(part for part in arguments if part is not type(None)), where)
    if origin is Literal:
        choices = {str(choice): choice for choice in arguments}
        if str(given) not in choices:
            raise unknown(f"value for {where}:", str(given), list(choices))
        return choices[str(given)]
    if origin is tuple:
        parts = given.strip("()[] ").split(",") if isinstance(given, str) else given
        parts = parts if isinstance(parts, list | tuple) else [parts]
        return tuple(convert(part, arguments[0], where) for part in parts)
    try:
        return _simple(given, kind)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{where} needs {getattr(kind, '__name__', kind)}, not {given!r}.") from None


def _simple(given: Any, kind: Any) -> Any:
    """Return `given` as a bool, int, float or str. Raises ValueError or TypeError."""
    if kind is bool:
        if isinstance(given, bool):
            return given
        word = str(given).strip().lower()
        if word not in TRUE | FALSE:
            raise ValueError
        return word in TRUE
    if kind is int:
        number = float(given)
        if isinstance(given, bool) or number != int(number):
            raise ValueError
        return int(number)
    if kind is float:
        if isinstance(given, bool):
            raise ValueError
        return float(given)
    if kind is str and isinstance(given, str):
        return given
    raise TypeError
