"""Grids: files that ask for runs, in lists or as every cell of a grid, read into requests."""

from __future__ import annotations

import functools
import itertools
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtlprune_bench.errors import UsageError, unknown
from mtlprune_bench.runs.request import SECTIONS, Request, merge_settings

RUN_KEYS = ("method", "dataset", "model", "sparsity", "seeds", "protocol")
CELL_KEYS = ("dataset", "model", "protocol", "sparsity", "method", "seed")
TEXTS = ("title", "description")
SUITE_KEYS = (*TEXTS, "methods", "grid", "exclude")
"""What a suite file has beside the [run] and the sections of settings of a run file."""

DEFAULTS = {"model": None, "protocol": "standard", "sparsity": 0.9, "seeds": 1}
WHOLE = ("engine", "runner")
"""The sections of settings that say how runs are executed, and so belong to all of them."""

MOST = 100_000
"""Runs that may be asked for at once: more are a slip, and would take all memory."""


@dataclass(frozen=True)
class Suite:
    """The runs that a file asks for, and what it calls them."""

    title: str
    description: str
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Cell:
    """One cell of the grid with that number, from 1; `facts` are its run keys and varied settings, by name."""

    grid: int
    facts: Mapping[str, Any]
    request: Request


def read_run(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the [run] part and the sections of settings of the run file `path`.

    Raises UsageError for what cannot be read, and for the file of a suite.
    """
    file = _read_toml(path)
    if any(key in file for key in SUITE_KEYS):
        raise UsageError(f"{path} is a suite: mtlbench suite run {path}")
    run = _run_part(file)
    for key, value in run.items():
        names = value if key == "method" and isinstance(value, list) else [value]
        if key not in ("sparsity", "seeds") and not all(isinstance(name, str) for name in names):
            raise UsageError(f"{key} in [run] is {value!r}; it must be a name in quotes.")
    return run, {name: section for name, section in file.items() if name != "run"}


def run_requests(run: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Request]:
    """Return one request for each method, sparsity and seed that the [run] part `run` names, with `settings`.

    Raises UsageError for what cannot be read.
    """
    methods = list(dict.fromkeys(_words(run.get("method") or [])))
    if not methods or not run.get("dataset"):
        missing = "--method" if not methods else "--dataset"
        raise UsageError(f"{missing} is missing, as in: mtlbench run --method disparse-static --dataset nyuv2")
    seeds = run.get("seeds", 1)
    if type(seeds) is not int or seeds < 1:
        raise UsageError(f"Seeds are {seeds!r}; give the number of seeds, 1 or more.")
    sparsities = list(dict.fromkeys(_sparsities(run.get("sparsity", 0.9))))
    _check_count(len(methods) * len(sparsities) * seeds, "[run]")
    return [
        Request(
            method=method,
            dataset=run["dataset"],
            model=run.get("model"),
            sparsity=sparsity,
            seed=seed,
            protocol=run.get("protocol", "standard"),
            settings=settings,
        )
        for sparsity in sparsities
        for method in methods
        for seed in range(seeds)
    ]


def read_suite(path: Path) -> Suite:
    """Return the suite in the TOML file `path`: a run file is one, too.

    Raises UsageError, naming the file, for what cannot be read, unknown keys, empty grids, cells that are asked
    for twice, and what an [[exclude]] names in vain. Names and settings are checked when runs are prepared.
    """
    file = _read_toml(path)
    try:
        return _suite(file)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _suite(file: Mapping[str, Any]) -> Suite:
    _check_names("key in a suite", file, (*SUITE_KEYS, "run", *SECTIONS))
    for name in TEXTS:
        if not isinstance(file.get(name, ""), str):
            raise UsageError(f"{name} is {file[name]!r}; it must be a text in quotes.")
    settings = {name: _section(file, name, name) for name in SECTIONS if name in file}
    run, methods = _run_part(file), _section(file, "methods", "methods.NAME")
    grids = _tables(file, "grid") or [{}]
    cells = [cell for number, grid in enumerate(grids, 1) for cell in _cells(number, grid, run, settings, methods)]
    _check_names("method in [methods]", methods, {cell.request.method for cell in cells})
    kept = _without(cells, _tables(file, "exclude"))
    for number in range(1, len(grids) + 1):
        if not any(cell.grid == number for cell in kept):
            raise UsageError(f"grid {number} is empty: every cell of it is excluded.")
    _check_duplicates(kept)
    return Suite(file.get("title", ""), file.get("description", ""), tuple(cell.request for cell in kept))


def _cells(
    number: int,
    grid: Mapping[str, Any],
    run: Mapping[str, Any],
    settings: Mapping[str, Any],
    methods: Mapping[str, Any],
) -> Iterator[Cell]:
    """Yield the cells of a [[grid]] table, seeds varying fastest."""
    where = f"grid {number}"
    _check_names(f"key in {where}", grid, (*RUN_KEYS, "settings", "vary"))
    keys = {**DEFAULTS, **run, **grid}
    for key in ("method", "dataset"):
        if key not in keys:
            raise UsageError(f"{where} has no {key}; name it there or in [run].")
    own, varied = (_flat(_section(grid, name, f"grid.{name}")) for name in ("settings", "vary"))
    _check_settings((*own, *varied), where)
    for name, values in varied.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{name} in vary of {where} is {values!r}; it must be a list of values.")
    axes = {key: _values(key, keys[key], where) for key in CELL_KEYS[:-1]}
    axes |= {**varied, "seed": _seeds(keys["seeds"], where)}
    _check_count(math.prod(map(len, axes.values())), where)
    for chosen in itertools.product(*axes.values()):
        facts = dict(zip(axes, chosen, strict=True))
        of_method = _flat(_section(methods, facts["method"], f"methods.{facts['method']}"), "method.")
        changes = [of_method, own, {name: facts[name] for name in varied}]
        merged = functools.reduce(merge_settings, map(_nested, changes), settings)
        yield Cell(number, facts, Request(**{key: facts[key] for key in CELL_KEYS}, settings=merged))


def _values(key: str, value: Any, where: str) -> list[Any]:
    """Return the values of a run key that may be one value or a list, in the order given."""
    if value is None:
        return [None]
    names = value if isinstance(value, list) else [value]
    if key != "sparsity" and not all(isinstance(name, str) for name in names):
        raise UsageError(f"{key} in {where} is {value!r}; it must be a name in quotes, or a list of names.")
    values: list[Any] = _sparsities(value) if key == "sparsity" else _words(names)
    if not values:
        raise UsageError(f"{key} in {where} is empty; name one or more.")
    return values


def _seeds(value: Any, where: str) -> list[int]:
    """Return the seeds that are listed, or as many as `value`, from 0 on."""
    _check_count(value if type(value) is int else 0, where)
    seeds = list(range(value)) if type(value) is int else value
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UsageError(f"seeds in {where} are {value!r}; give their number, 1 or more, or a list of them.")
    return seeds


def _check_count(count: int, where: str) -> None:
    if count > MOST:
        raise UsageError(f"{where} asks for {count} runs; at most {MOST} can be asked for at once.")


def _without(cells: Sequence[Cell], rules: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Return `cells` but for those that match all keys of a rule. Raises UsageError for a value in vain."""
    known = {name for cell in cells for name in cell.facts}
    out: list[Cell] = []
    for number, rule in enumerate(rules, 1):
        where = f"exclude {number}"
        if not rule:
            raise UsageError(f"{where} has no keys, and would leave out everything.")
        wanted = {key: value if isinstance(value, list) else [value] for key, value in _flat(rule).items()}
        _check_names(f"key in {where}", wanted, known)
        for key in wanted.keys() & set(CELL_KEYS):
            wanted[key] = _seeds(wanted[key], where) if key == "seed" else _values(key, wanted[key], where)
        matched = [cell for cell in cells if all(cell.facts.get(key) in wanted[key] for key in wanted)]
        for key, values in wanted.items():
            found = [cell.facts[key] for cell in matched]
            if vain := [value for value in values if value not in found]:
                raise UsageError(f"{where} leaves out no cell with {key} = {vain[0]!r}; correct it or remove it.")
        out += matched
    return [cell for cell in cells if cell not in out]


def _check_duplicates(cells: Iterable[Cell]) -> None:
    """Raise UsageError where two cells ask for the same run."""
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(json.dumps(asdict(cell.request), sort_keys=True, default=str), cell)
        if other is not cell:
            where = f"and grid {cell.grid}" if other.grid != cell.grid else "twice"
            raise UsageError(f"{_name(cell)} is in grid {other.grid} {where}; remove one of them.")


def _name(cell: Cell) -> str:
    request = cell.request
    varied = [f"{name} = {value}" for name, value in cell.facts.items() if name not in CELL_KEYS]
    parts = [request.method, request.dataset, request.model or "", f"{request.sparsity:g}", *varied]
    return f"cell {', '.join(part for part in parts if part)}, seed {request.seed}"


def _run_part(file: Mapping[str, Any]) -> dict[str, Any]:
    run = _section(file, "run", "run")
    _check_names("key in [run]", run, RUN_KEYS)
    return run


def _section(parent: Mapping[str, Any], name: str, label: str) -> dict[str, Any]:
    """Return the table `name` of `parent`, empty if it is not there; `label` is how a file writes it."""
    section = parent.get(name, {})
    if not isinstance(section, dict):
        raise UsageError(f"'{name}' is a section; write [{label}] above its keys, not {name} = {section!r}.")
    return section


def _tables(file: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    tables = file.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"There may be several of '{name}'; write [[{name}]], with two brackets, above its keys.")
    return tables


def _check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            raise unknown(kind, name, known)


def _check_settings(names: Iterable[str], where: str) -> None:
    """Raise UsageError for what is no dotted setting, or none that one grid can have for itself."""
    for name in names:
        section, dot, _ = name.partition(".")
        _check_names(f"section of settings in {where}", [section], SECTIONS)
        if not dot:
            raise UsageError(f"'{section}' in {where} is a section of settings; write {section}.NAME.")
        if section in WHOLE:
            raise UsageError(f"{name} in {where} is for the whole suite; write it under [{section}].")


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values in nested tables by their dotted names, which may have been written in quotes."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by section of values by dotted name."""
    settings: dict[str, Any] = {}
    for name, value in flat.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        settings = merge_settings(settings, value)
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # of TOML, of its letters, or nested too deeply
        raise UsageError(f"{path} is not valid TOML: {error}.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error


def _words(value: str | Sequence[str]) -> list[str]:
    """Return the names in "a,b", or in a list of such."""
    parts = [value] if isinstance(value, str) else value
    return [name for part in parts for word in part.split(",") if (name := word.strip())]


def _sparsities(value: Any) -> list[float]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        return [float(part) for part in parts]
    except (TypeError, ValueError):
        raise UsageError(f"Sparsity '{value}' is no list of numbers, such as 0.5,0.9.") from None
