"""Differences: the paired comparison of every method of a setting with one reference, for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtlprune_bench.errors import UsageError
from mtlprune_bench.results.captions import label
from mtlprune_bench.results.comparisons import SETTING, Column, Comparison, base_of, comparisons
from mtlprune_bench.results.evidence import footnotes, record
from mtlprune_bench.results.paired import Effect, Pairing, pairings

if TYPE_CHECKING:
    import pandas as pd

OF_EFFECT = (
    "method",
    "seeds",
    "reference_values",
    "values",
    "difference",
    "verdict",
    "low",
    "high",
    "p",
    "p_holm",
)


@dataclass(frozen=True)
class Paired:
    """The pairings of one setting, and `reason`, why there are none or not all; "" for nothing to say."""

    found: Sequence[Pairing] = ()
    reason: str = ""
    columns: Mapping[Column, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it JSON-like: an effect has the number of its column in `paired_columns`."""
        levels = [
            {
                "sparsity": pairing.sparsity,
                "reference": pairing.reference,
                "notes": footnotes(pairing),
                "effects": [self._effect(effect) for effect in pairing.effects],
            }
            for pairing in self.found
        ]
        return {"levels": levels, "reason": self.reason}

    def _effect(self, effect: Effect) -> dict[str, Any]:
        known = record(effect)
        return {"column": self.columns[effect.column], **{name: known[name] for name in OF_EFFECT}}


def paired(comparison: Comparison, rows: pd.DataFrame, reference: str | None) -> Paired:
    """Return how the lines of `comparison` differ from `reference`, seed by seed.

    `rows` may have those of other settings. Without a reference it is the dense network from which deltas are
    taken. Lines of several runs with one seed cannot be paired and are left out.
    """
    here = rows
    for name in SETTING:
        here = here[here[name] == comparison.setting[name]]
    base = reference or _dense(here)
    if base is None:
        return Paired(reason="There is no dense network to compare with. Name another method by --reference.")
    names = dict.fromkeys(label(line) for line in comparison.lines if not line.apart)
    apart = dict.fromkeys(line.method for line in comparison.lines if line.apart)
    reason = f"Left out, as several runs have one seed: {', '.join(apart)}." if apart else ""
    others = [name for name in names if name != base]
    if not others:
        return Paired(reason=reason or f"There is nothing to compare with {base}.")
    try:
        found = pairings(here, base, others)
    except UsageError as error:
        return Paired(reason=str(error))
    asked = {line.sparsity for line in comparison.lines}
    found = [pairing for pairing in found if pairing.sparsity in asked]
    columns = dict.fromkeys(effect.column for pairing in found for effect in pairing.effects)
    return Paired(found, reason, {column: number for number, column in enumerate(columns)})


def _dense(rows: pd.DataFrame) -> str | None:
    """Return what the dense network of one setting is called, None where it has none."""
    for comparison in comparisons(rows[rows["sparsity"] == 0], ()):
        if (line := base_of(comparison.lines)) is not None:
            return label(line)
    return None
