"""Contracts: for each kind of thing that plugins bring, the checks that it has to pass."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from mtlprune_bench.errors import MtlbenchError
from mtlprune_bench.host.registry import Registry
from mtlprune_bench.pruning.arbiters import OR
from mtlprune_bench.pruning.method import PER_TASK, Method
from mtlprune_bench.pruning.schedules import Every, Levels, Once
from mtlprune_bench.pruning.scorers import Magnitude, Noise, Saliency
from mtlprune_bench.runs.request import merge_settings
from mtlprune_bench.testing.case import Case, Settings, watched_by
from mtlprune_bench.testing.tiny import TINY, register_tiny

METHODS: Final = "methods"
OBSERVERS: Final = "observers"
"""The kind of a plugin that hooks in; it is called as its plugin is."""

CONTRACTS: dict[str, list[Callable[..., str | None]]] = {}
"""The checks of each kind, by the kind's name in the registry.

A check is called with a name, the registry that has it, a folder that is empty at first, and, if need be, settings
as of a Request. It raises AssertionError, or returns why there was nothing to check.
"""

IN_METHODS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "scorers": lambda scorer: {"score": scorer},
    "arbiters": lambda arbiter: {"score": Saliency(), "scope": PER_TASK, "arbiter": arbiter},
    "schedules": lambda schedule: {"score": Noise(), "schedule": schedule, "grow": Noise()},
    "allocations": lambda allocation: {"score": Magnitude(), "allocation": allocation},
    OBSERVERS: lambda plugin: {
        "score": Noise(),
        "schedule": Every(),
        "grow": Saliency(power=0),
        "scope": PER_TASK,
        "arbiter": OR,
    },
}
"""The axes of the method that shows what a part of a method does, or an observer, by kind."""


def contract(*kinds: str) -> Callable[[Callable[[Case], str | None]], Callable[..., str | None]]:
    """Make a check of a function of a Case, for things of these kinds, and list it in CONTRACTS."""

    def declare(check: Callable[[Case], str | None]) -> Callable[..., str | None]:
        made = [_bound(check, kind) for kind in kinds]
        for kind, call in zip(kinds, made, strict=True):
            CONTRACTS.setdefault(kind, []).append(call)
        return made[0]

    return declare


def _bound(check: Callable[[Case], str | None], kind: str) -> Callable[..., str | None]:
    """Return `check` as it is called for things of one kind."""

    def call(name: str, registry: Registry, folder: Path, settings: Settings | None = None) -> str | None:
        what = f"{kind.removesuffix('s').capitalize()} '{name}'"
        try:
            with _in_small():
                return check(_case(kind, name, registry, folder, settings or {}))
        except AssertionError as error:
            raise AssertionError(f"{what} {error}") from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}{_place(error)}"
            raise AssertionError(f"{what} does not get through {check.__name__}: {reason}") from error

    call.__name__ = call.__qualname__ = check.__name__
    call.__doc__ = check.__doc__
    return call


@contextlib.contextmanager
def _in_small() -> Iterator[None]:
    """While the context lasts compute in one thread, and let runs not warn in the log.

    On networks so tiny, several threads only wait for each other, and layers without any weight are no news.
    """
    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(disabled)


def _place(error: Exception) -> str:
    """Return in which line an error that is not one of ours was raised."""
    if isinstance(error, MtlbenchError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    frame = [one for one in frames if not one.filename.startswith(torch.__path__[0])][-1]
    return f" ({frame.filename}, line {frame.lineno})"


def _case(kind: str, name: str, registry: Registry, folder: Path, settings: Settings) -> Case:
    """Return what a check looks at: for what is no method of its own, a method that uses it.

    No observer watches, so that it is the method that is checked.
    """
    register_tiny(registry)
    alone = watched_by(dataclasses.replace(registry, entries=dict(registry.entries)))
    if kind == METHODS:
        return Case(name, alone, folder, merge_settings(_short_rounds(name, registry), settings))
    value = registry.manager.get_plugin(name) if kind == OBSERVERS else registry.get(kind, name)
    method = Method(name=f"contract-{kind}-{name}".replace(":", "-"), **{"schedule": Once(), **_axes(kind, value)})
    alone.add(METHODS, method, __name__, __name__, None)
    return Case(method.name, alone, folder, settings, value)


def _short_rounds(name: str, registry: Registry) -> dict[str, Any]:
    """Return the settings by which rounds of training are no longer than the tiny training is."""
    schedule = getattr(registry.get(METHODS, name), "schedule", None)
    most = registry.get("datasets", TINY).train.steps
    longer = isinstance(schedule, Levels) and schedule.steps is not None and schedule.steps > most
    return {"method": {"schedule": {"steps": most}}} if longer else {}


def _axes(kind: str, value: Any) -> dict[str, Any]:
    return IN_METHODS[kind](value) if kind in IN_METHODS else {"score": Noise()}
