"""The catalogue: what is registered, and every setting with its default and where that comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mtlprune_bench.adapters import Dataset, Model
from mtlprune_bench.errors import unknown
from mtlprune_bench.host.registry import KINDS, Entry, Registry
from mtlprune_bench.protocols import PROTOCOLS, STANDARD, Protocol
from mtlprune_bench.pruning.learned import LearnedMethod
from mtlprune_bench.pruning.method import Method
from mtlprune_bench.runs.config import Engine
from mtlprune_bench.runs.opening import DataSettings
from mtlprune_bench.tasks import Metric, Task

Table = tuple[str, list[list[str]], list[str]]
"""A title, rows of texts, and headings."""

SETTINGS = ["setting", "default", "what it is", "source"]


def list_kinds(registry: Registry, kind: str | None) -> list[Table]:
    """Return a table for `kind`, or one for every kind where it is None; none where `kind` is no kind."""
    if kind == "plugins":
        return [_plugins(registry)]
    if kind == "protocols":
        return [_protocols()]
    if kind is not None and kind not in KINDS:
        return []
    kinds = [kind] if kind else [kind for kind in KINDS if registry.of_kind(kind)]
    return [_kind(registry, kind) for kind in kinds]


def _kind(registry: Registry, kind: str) -> Table:
    entries = registry.of_kind(kind)
    if kind == "metrics":
        return _metrics(entries)
    names = [f"{entry.name}:…" if getattr(entry.value, "takes", "") else entry.name for entry in entries]
    rows = [[name, entry.summary, entry.origin] for name, entry in zip(names, entries, strict=True)]
    return kind, rows, ["name", "what it is", "origin"]


def _metrics(entries: Sequence[Entry]) -> Table:
    rows = [
        [
            entry.name,
            entry.summary,
            entry.value.unit or "of the labels",
            "higher" if entry.value.higher_is_better else "lower",
            f"{entry.value.low:g} to {entry.value.high:g}",
            entry.origin,
        ]
        for entry in entries
    ]
    return "metrics", rows, ["name", "what it is", "unit", "better", "range", "origin"]


def _plugins(registry: Registry) -> Table:
    loaded: dict[tuple[str, str], int] = {}
    for entry in registry.entries.values():
        loaded[entry.plugin, entry.origin] = loaded.get((entry.plugin, entry.origin), 0) + 1
    named = {name for name, _ in loaded}
    for name, module in registry.manager.list_name_plugin():
        if module is not None and name not in named:
            loaded[name, getattr(module, "__file__", "") or ""] = 0
    rows = [[name, str(count), origin] for (name, origin), count in loaded.items()]
    rows += [[failure.plugin, f"failed: {failure.problem}", failure.origin] for failure in registry.failures]
    return "plugins", rows, ["name", "registers", "origin"]


def _protocols() -> Table:
    rows = [
        [item.name, item.metadata["standard"], item.metadata["disparse"]]
        for item in dataclasses.fields(Protocol)
        if item.metadata
    ]
    return "protocols", rows, ["switch", *PROTOCOLS]


def describe_name(registry: Registry, name: str) -> list[Table]:
    """Return all about the registered things called `name`. Raises UsageError where there is none."""
    base = name.partition(":")[0]
    found = [entry for entry in registry.entries.values() if entry.name in (name, base)]
    if not found:
        names = [entry.name for entry in registry.entries.values()]
        raise unknown("kind or name", name, [*KINDS, "plugins", "protocols", "settings", *names])
    return [table for entry in found for table in _describe(registry, entry)]


def _describe(registry: Registry, entry: Entry) -> Iterator[Table]:
    value = entry.value
    title = f"{entry.kind.removesuffix('s')} {entry.name}: {entry.summary}"
    facts = [["plugin", f"{entry.plugin} ({entry.origin})"]]
    facts += [[key, text] for key in ("paper", "source", "stand_in", "takes") if (text := getattr(value, key, ""))]
    if isinstance(value, Method | LearnedMethod):
        facts += [[f"variant {name}", ", ".join(axes)] for name, axes in value.variants.items()]
    yield title, facts, ["fact", "value"]
    if isinstance(value, Dataset):
        yield from _dataset(value)
    elif isinstance(value, Task | Metric):
        task = value.name if isinstance(value, Task) else value.task
        yield _metrics([other for other in registry.of_kind("metrics") if other.value.task == task])
    elif settings := list(_settings(value, "runner." if entry.kind == "runners" else "")):
        yield "settings", settings, SETTINGS


def _settings(value: Any, prefix: str) -> Iterator[list[str]]:
    """Yield a row for each setting of a method, a model, a metric or any other registered dataclass."""
    if isinstance(value, Method | LearnedMethod):
        yield from _method(value)
    elif isinstance(value, Model):
        yield from _fields(value.settings, "model.", "this model")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _fields(value, prefix, "this class")


def _method(method: Method | LearnedMethod) -> Iterator[list[str]]:
    for item in dataclasses.fields(method):
        if "help" not in item.metadata:
            continue
        value = getattr(method, item.name)
        source = method.sources.get(
            item.name, "default of every method" if value == item.default else "this method"
        )
        yield [f"method.{item.name}", _text(value), item.metadata["help"], source]
        if dataclasses.is_dataclass(value):
            for row in _fields(value, f"method.{item.name}.", "this method"):
                row[3] = method.sources.get(row[0].removeprefix("method."), row[3])
                yield row
    names = ", ".join(["paper", *method.variants])
    if method.variants:
        yield ["method.variant", "paper", f"one of {names}", method.sources.get("variant", "this method")]


def _fields(value: Any, prefix: str, source: str) -> Iterator[list[str]]:
    """Yield a row for each field of a dataclass that can be set."""
    for item in dataclasses.fields(value):
        if item.init:
            chosen = getattr(value, item.name)
            where = "default" if chosen == item.default else source
            yield [f"{prefix}{item.name}", _text(chosen), item.metadata.get("help", ""), where]


def _text(value: Any) -> str:
    return str(getattr(value, "name", value))


def _dataset(dataset: Dataset) -> Iterator[Table]:
    tasks = [
        [label.task, f"{label.classes or ''}", label.unit, f"{dataset.loss_weights[label.task]:g}"]
        for label in dataset.labels
    ]
    yield "tasks", tasks, ["task", "classes", "unit", "loss weight"]
    yield "model and recipes", _recipes(dataset), SETTINGS


def _recipes(dataset: Dataset) -> list[list[str]]:
    rows = [["model", dataset.model, "the default network", "this dataset"]]
    for section in ("train", "finetune"):
        rows += _fields(getattr(dataset, section), f"{section}.", "this dataset")
    for row in rows:
        row[3] = dataset.sources.get(row[0], dataset.sources.get(row[0].split(".")[0], row[3]))
    return rows


def general_settings() -> Table:
    """Return the settings that belong to no method, dataset or model."""
    rows = [*_fields(DataSettings(), "data.", ""), *_fields(Engine(), "engine.", "")]
    rows.append(["protocol", STANDARD.name, " or ".join(PROTOCOLS), "default"])
    return "general settings", rows, SETTINGS


def tables(registry: Registry, what: str | None) -> Sequence[Table]:
    """Return what `mtlbench ls WHAT` prints. Raises UsageError for what is neither a kind nor a name."""
    if what == "settings":
        return [general_settings()]
    return list_kinds(registry, what) or describe_name(registry, what or "")
