"""Paired comparisons: methods against a reference, seed by seed, within one setting and sparsity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from mtlprune_bench.errors import UsageError, unknown
from mtlprune_bench.results.comparisons import (
    DELTA,
    FAR,
    Column,
    Line,
    comparisons,
    delta_cells,
    method_label,
    order,
)
from mtlprune_bench.results.deltas import MEAN, Definition
from mtlprune_bench.results.significance import FEWEST, holm, intervals, p_values

if TYPE_CHECKING:
    import pandas as pd

Seeds = Mapping[int, Line]
"""The runs of one method at one sparsity, by seed."""


@dataclass(frozen=True)
class Effect:
    """How far one number of `method` is from that of the reference.

    `values` and `base` are those of the method and of the reference, by seed. The interval and `p` are nan where
    there are fewer than FEWEST seeds; `corrected` is Holm's over the `tests` methods compared by this number.
    """

    column: Column
    method: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    base: tuple[float, ...]
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    corrected: float = math.nan
    tests: int = 0

    @property
    def differences(self) -> tuple[float, ...]:
        """Return method minus reference, by seed."""
        return tuple(value - base for value, base in zip(self.values, self.base, strict=True))

    @property
    def verdict(self) -> str:
        """Return which way the mean difference goes: better or worse; higher or lower where neither is better."""
        difference = fmean(self.differences) if self.seeds else math.nan
        if math.isnan(difference):
            return ""
        if difference == 0:
            return "equal"
        if self.column.higher_is_better is None:
            return "higher" if difference > 0 else "lower"
        return "better" if (difference > 0) == self.column.higher_is_better else "worse"


@dataclass(frozen=True)
class Pairing:
    """Methods against one reference in one setting, at one sparsity asked for, in [0, 1)."""

    setting: Mapping[str, str | bool]
    sparsity: float
    reference: str
    effects: tuple[Effect, ...]
    notes: tuple[str, ...]


@dataclass
class _Setting:
    """The finished runs of one setting by the label of the method, sparsity and seed; and its failures."""

    facts: Mapping[str, str | bool]
    columns: dict[Column, None] = field(default_factory=dict)
    runs: dict[str, dict[float, dict[int, Line]]] = field(default_factory=dict)
    failures: dict[str, tuple[float, str]] = field(default_factory=dict)


def pairings(
    rows: pd.DataFrame,
    reference: str,
    methods: Sequence[str],
    sparsities: Collection[float] = (),
    metrics: Collection[str] = (),
    definition: Definition = MEAN,
) -> list[Pairing]:
    """Return how `methods` differ from `reference`, for every setting and sparsity that any of them has.

    `rows` has the columns of a store's rows. A method is named by its label, by its name alone or by the beginning
    of its label, where only one fits. Without `sparsities` and `metrics`: all sparsities, and the delta of
    `definition` and what is measured on the test set. Raises UsageError for unknown and ambiguous names, for
    sparsities and metrics that no row has, for runs that cannot be told apart, and where nothing can be paired.
    """
    labels = [
        method_label(*parts) for parts in zip(rows["method"], rows["settings"], rows["finetune"], strict=True)
    ]
    known = dict(zip(labels, rows["method"], strict=True))
    names = list(dict.fromkeys(_resolve(name, known) for name in (reference, *methods)))
    if len(names) < 2:
        raise UsageError(f"'{names[0]}' cannot be compared with itself; name another method.")
    _check_metrics(metrics, {*rows["metric"], DELTA} - {""})
    wanted = rows.assign(label=labels)["label"].isin(names)
    plain = (rows["sparsity"] == 0) & (rows["settings"] == "") & ~rows["pretrained"]
    settings = _settings(rows[wanted | plain], definition)
    levels = sorted({level for setting in settings for level in _levels(setting, names)})
    for sparsity in sparsities:
        if sparsity not in levels:
            there = ", ".join(f"{level:g}" for level in levels) or "none at all"
            raise UsageError(f"These methods have no finished run at sparsity {sparsity:g}, but at {there}.")
    found = [
        _pairing(setting, names, level, metrics)
        for setting in settings
        for level in _levels(setting, names)
        if level in (sparsities or levels)
    ]
    if not any(pairing.effects for pairing in found):
        raise UsageError(
            f"'{names[0]}' and {' or '.join(repr(name) for name in names[1:])} have no finished runs with the "
            "same dataset, data, protocol, model, recipe, sparsity and seed; mtlbench table lists what there is."
        )
    return found


def _check_metrics(metrics: Iterable[str], measured: Collection[str]) -> None:
    for metric in metrics:
        if metric not in measured:
            raise unknown("metric", metric, measured)


def _resolve(name: str, known: Mapping[str, str]) -> str:
    """Return the label that `name` stands for, of those `known`, each with the method that it is of."""
    ways = (
        [text for text in known if text == name],
        [text for text, method in known.items() if method == name],
        [text for text in known if text.startswith(name)],
    )
    matching = next((way for way in ways if way), None)
    if matching is None:
        raise unknown("method", name, {*known, *known.values()})
    if len(matching) > 1:
        choice = ", ".join(f"'{text}'" for text in sorted(matching))
        raise UsageError(f"'{name}' may be any of {choice}; write more of it, in quotes.")
    return matching[0]


def _settings(rows: pd.DataFrame, definition: Definition) -> list[_Setting]:
    """Return the settings of `rows`, each run with its delta from the dense one of the same seed."""
    found: dict[tuple[str | bool, ...], _Setting] = {}
    asked = dict(zip(rows["run"], rows["sparsity"], strict=True))
    for seed in sorted(map(int, set(rows["seed"]))):
        for comparison in comparisons(rows[rows["seed"] == seed], ()):
            setting = found.setdefault(tuple(comparison.setting.values()), _Setting(comparison.setting))
            setting.columns |= dict.fromkeys(comparison.columns)
            setting.failures |= {run: (asked[run], reason) for run, reason in comparison.failures.items()}
            for line in comparison.lines:
                name = method_label(line.method, line.settings, line.finetune)
                runs = setting.runs.setdefault(name, {}).setdefault(line.sparsity, {})
                if runs.setdefault(seed, line) is not line:
                    ids = " and ".join((*runs[seed].runs, *line.runs))
                    raise UsageError(
                        f"{ids} are both '{name}' with seed {seed} at sparsity {line.sparsity:g}: move the folder "
                        "of the one that is not meant out of the store."
                    )
    for setting in found.values():
        _add_delta(setting, definition)
    return [found[key] for key in sorted(found, key=str)]


def _add_delta(setting: _Setting, definition: Definition) -> None:
    """Add the deltas of all runs from the dense network of their seed, where there is one, chosen as in tables."""
    plain = [
        (order(line), name)
        for name, levels in setting.runs.items()
        for line in levels.get(0.0, {}).values()
        if not (line.settings or line.pretrained)
    ]
    dense = setting.runs[min(plain)[1]][0.0] if plain else {}
    for runs in [runs for levels in setting.runs.values() for runs in levels.values()]:
        for seed in runs.keys() & dense.keys():
            # The dense run may be replaced itself: its metrics, from which deltas are taken, stay.
            added = delta_cells(runs[seed].cells, dense[seed].cells, definition)
            runs[seed] = replace(runs[seed], cells={**runs[seed].cells, **added})
            setting.columns |= dict.fromkeys(added)


def _levels(setting: _Setting, names: Iterable[str]) -> list[float]:
    """Return the sparsities of `names`; 0, of networks that are not pruned, only where there is no other."""
    found = [set(setting.runs[name]) for name in names if name in setting.runs]
    pruned = set().union(*(levels for levels in found if levels != {0.0}))
    return sorted(pruned or set().union(*found))


def _at(setting: _Setting, name: str, sparsity: float) -> Seeds:
    """Return a method's runs at `sparsity`; a network that is not pruned has one a seed for all sparsities."""
    levels = setting.runs.get(name, {})
    return levels.get(0.0 if set(levels) == {0.0} else sparsity, {})


def _pairing(setting: _Setting, names: Sequence[str], sparsity: float, metrics: Collection[str]) -> Pairing:
    """Return the first of `names` against the others at `sparsity`."""
    reference, *others = names
    base, *rest = [_at(setting, name, sparsity) for name in names]
    paired = {name: runs for name, runs in zip(others, rest, strict=True) if runs.keys() & base.keys()}
    effects = _tested(
        [
            _effect(column, name, runs, base)
            for column in setting.columns
            if (column.metric in metrics if metrics else column.split == "test" or column.metric == DELTA)
            for name, runs in paired.items()
        ]
    )
    families = [list(family) for _, family in itertools.groupby(effects, lambda effect: effect.column)]
    notes = [note for name, runs in zip(others, rest, strict=True) for note in _alone(name, runs, reference, base)]
    notes += [note for name, runs in zip(names, (base, *rest), strict=True) for note in _missed(name, runs)]
    failures = setting.failures.items()
    notes += [f"{run} {words}" for run, (asked, words) in failures if asked in (sparsity, 0)]
    if paired and not any(column.metric == DELTA for column in setting.columns):
        notes.append("No delta: there is no dense network with one of these seeds.")
    corrected = tuple(effect for family in families for effect in _corrected(family))
    return Pairing(setting.facts, sparsity, reference, corrected, tuple(notes))


def _effect(column: Column, method: str, runs: Seeds, base: Seeds) -> Effect:
    """Return how far `runs` are from `base` in the seeds in which both have a finite number."""
    pairs = {
        seed: (runs[seed].cells[column].mean, base[seed].cells[column].mean)
        for seed in sorted(runs.keys() & base.keys())
        if all(
            column in line.cells and math.isfinite(line.cells[column].mean) for line in (runs[seed], base[seed])
        )
    }
    values, references = (tuple(pair[side] for pair in pairs.values()) for side in (0, 1))
    return Effect(column, method, tuple(pairs), values, references)


def _tested(effects: Sequence[Effect]) -> list[Effect]:
    """Return `effects` with an interval and p, those that have enough seeds."""
    found = list(effects)
    counts = {len(effect.seeds) for effect in effects}
    for count in (count for count in counts if count >= FEWEST):
        places = [place for place, effect in enumerate(effects) if len(effect.seeds) == count]
        rows = [effects[place].differences for place in places]
        for place, (low, high), p in zip(places, intervals(rows), p_values(rows), strict=True):
            found[place] = replace(effects[place], low=low, high=high, p=p)
    return found


def _corrected(family: Sequence[Effect]) -> Iterator[Effect]:
    """Yield the effects of several methods on one number, corrected for there being several."""
    tested = [effect.p for effect in family if not math.isnan(effect.p)]
    corrected = iter(holm(tested))
    for effect in family:
        yield effect if math.isnan(effect.p) else replace(effect, corrected=next(corrected), tests=len(tested))


def _alone(name: str, runs: Seeds, reference: str, base: Seeds) -> Iterator[str]:
    """Yield which runs have no partner with the same seed."""
    alone = sorted(runs.keys() ^ base.keys())
    if not runs.keys() & base.keys():
        yield f"{reference} and {name} have no seed in common here."
    elif alone:
        yield f"{reference} and {name} do not both have seed {', '.join(map(str, alone))}: left out."


def _missed(name: str, runs: Seeds) -> Iterator[str]:
    """Yield whether the sparsity that was reached is another than the one asked for."""
    asked = next((line.sparsity for line in runs.values()), 0.0)
    reached = [line.reached[asked] for line in runs.values() if asked in line.reached]
    if reached and abs(fmean(reached) - asked) > FAR:
        yield f"{name} was asked for a sparsity of {100 * asked:g} % and reached {100 * fmean(reached):.2f} %."
