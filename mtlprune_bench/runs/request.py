"""Requests: one run as a user asks for it, in names and settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mtlprune_bench.errors import UsageError

SECTIONS = ("method", "model", "data", "train", "finetune", "engine", "runner")
"""The sections of settings, as in `--set train.lr=1e-3`."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One run as a user asks for it; `settings` are by section, `model` None stands for the dataset's."""

    method: str
    dataset: str
    sparsity: float
    seed: int
    model: str | None = None
    protocol: str = "standard"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def parse_settings(assignments: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return nested settings from lines such as `train.lr=1e-3` or `method.score.batches=10`.

    Raises UsageError for a line without a dotted name or a value.
    """
    settings: dict[str, Any] = {}
    for line in assignments:
        name, equals, text = line.partition("=")
        path = name.strip().split(".")
        if not equals or len(path) < 2 or not all(path):
            raise UsageError(f"'{line}' is no setting; write SECTION.NAME=VALUE, such as train.lr=1e-3.")
        change: Any = text.strip()
        for part in reversed(path):
            change = {part: change}
        settings = merge_settings(settings, change)
    return settings


def nested_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` by section, of which keys may be dotted names: {"train.lr": 1} is {"train": {"lr": 1}}.

    Raises UsageError for a dotted name with an empty part.
    """
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        path = name.split(".")
        if not all(path):
            raise UsageError(f"'{name}' is no setting; write SECTION.NAME, such as train.lr.")
        change = nested_settings(value) if isinstance(value, Mapping) else value
        for part in reversed(path):
            change = {part: change}
        nested = merge_settings(nested, change)
    return nested


def merge_settings(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`, which win; a name and settings of one thing are kept together.

    `method.score` may be a name in one and settings in the other: both hold.
    """
    merged = dict(base)
    for key, change in changes.items():
        present = merged.get(key)
        if isinstance(change, Mapping) and present is not None:
            inner = present if isinstance(present, Mapping) else {"name": present}
            merged[key] = merge_settings(inner, change)
        elif isinstance(present, Mapping):
            merged[key] = {**present, "name": change}
        else:
            merged[key] = change
    return merged
