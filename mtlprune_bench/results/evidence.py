"""Evidence: paired comparisons as text, with what their numbers mean and what they cannot show."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

import tabulate

from mtlprune_bench.results.captions import MISSING, caption, header, number
from mtlprune_bench.results.comparisons import Cell, Comparison
from mtlprune_bench.results.deltas import DEFINITIONS
from mtlprune_bench.results.paired import Effect, Pairing
from mtlprune_bench.results.render import plain
from mtlprune_bench.results.significance import (
    CONFIDENCE,
    COVERED,
    FEWEST,
    FLIPS,
    RESAMPLES,
    smallest_p,
    test_name,
)

HEADINGS = (
    "metric",
    "method",
    "reference",
    "mean",
    "difference",
    f"{100 * CONFIDENCE:g} % interval",
    "p",
    "Holm",
    "n",
)
NOT_ENOUGH = "not enough seeds"
LEVEL = 0.05
"""The limit of p below which a difference is usually called significant."""


def title(pairing: Pairing) -> str:
    """Return what is compared with what, in words."""
    common = caption(Comparison(pairing.setting, (), (), {}))
    return f"{common}; sparsity {100 * pairing.sparsity:g} %; reference: {pairing.reference}"


def grid(pairing: Pairing) -> list[list[str]]:
    """Return a row of texts, one for each of HEADINGS, for each effect."""
    return [_texts(effect) for effect in pairing.effects]


def _texts(effect: Effect) -> list[str]:
    tested = bool(effect.tests)
    difference, low, high = (
        number(Cell(value, math.nan), effect.column.unit, signed=True)
        for value in (_mean(effect.differences), effect.low, effect.high)
    )
    base, mean = (number(Cell(_mean(side), math.nan), effect.column.unit) for side in (effect.base, effect.values))
    return [
        header(effect.column),
        effect.method,
        base,
        mean,
        f"{difference} {effect.verdict}".strip(),
        f"{low} to {high}" if tested else MISSING,
        _p(effect.p) if tested else NOT_ENOUGH,
        _p(effect.corrected) if tested else MISSING,
        str(len(effect.seeds)),
    ]


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def footnotes(pairing: Pairing) -> list[str]:
    """Return what a reader of the numbers has to know: what they are, how sure they are, and what is missing."""
    notes = [*_meanings(pairing.effects), *_limits(pairing.effects)] if pairing.effects else []
    return [*notes, *pairing.notes]


def _meanings(effects: Sequence[Effect]) -> Iterator[str]:
    yield "difference: method minus reference, the mean over the n seeds that both have; % are percentage points."
    for definition in dict.fromkeys(effect.column.definition for effect in effects if effect.column.definition):
        words = DEFINITIONS[definition].words
        yield (
            f"delta ({definition}): relative improvement over the dense network of the same seed, {words}. Tables "
            "take it of means over seeds, and so have another number."
        )
    tested = [effect for effect in effects if effect.tests]
    if not tested:
        return
    covered = ", ".join(f"{100 * share:g} % with {seeds} seeds" for seeds, share in COVERED.items())
    yield (
        f"{100 * CONFIDENCE:g} % interval: percentile bootstrap of the mean difference, {RESAMPLES} resamples. "
        f"It is too narrow for few seeds: of normal differences it covers the true mean in about {covered}."
    )
    for name in dict.fromkeys(test_name(len(effect.seeds)) for effect in tested):
        signs = ", over all 2^n choices of signs" if name == FLIPS else ", differences of 0 left out"
        yield f"p: two-sided, {name}{signs}."
    counts = sorted({effect.tests for effect in tested} - {1})
    if counts:
        number = " or ".join(map(str, counts))
        yield f"Holm: p corrected over the {number} methods that are compared by one metric, not over metrics."


def _limits(effects: Sequence[Effect]) -> Iterator[str]:
    """Yield what so few seeds cannot show."""
    if any(not effect.tests for effect in effects):
        yield f"{NOT_ENOUGH}: {FEWEST} that both have are needed for an interval and p."
    for count, tests in sorted({(len(effect.seeds), effect.tests) for effect in effects if effect.tests}):
        least = smallest_p(count)
        corrected = min(1.0, tests * least)
        if corrected > LEVEL:
            over = f", {corrected:g} after Holm's correction over {tests} methods" if tests > 1 else ""
            yield (
                f"With {count} seeds the smallest p there can be is 2/2^{count} = {least:g}{over}: {LEVEL:g} is "
                "out of reach, however large the difference. The difference and its interval are what there is."
            )


def terminal(pairing: Pairing) -> str:
    """Return a pairing as a table for the terminal."""
    return "\n".join([plain(title(pairing), grid(pairing), HEADINGS).rstrip(), *footnotes(pairing)]) + "\n"


def markdown(pairing: Pairing) -> str:
    """Return a pairing as a GitHub table."""
    notes = "\n".join(f"- {note}" for note in footnotes(pairing))
    if not pairing.effects:
        return f"**{title(pairing)}**: none\n\n{notes}\n"
    rows = [[text.replace("|", r"\|") for text in row] for row in grid(pairing)]
    sides = ["left", "left", *["right"] * (len(HEADINGS) - 2)]
    table = tabulate.tabulate(rows, HEADINGS, tablefmt="github", disable_numparse=True, colalign=sides)
    return f"**{title(pairing)}**\n\n{table}\n\n{notes}\n"


def record(effect: Effect) -> dict[str, object]:
    """Return an effect's numbers in their own units, None for what is not known."""
    column, differences = effect.column, effect.differences
    tested = bool(effect.tests)
    return {
        "method": effect.method,
        "metric": column.metric,
        "definition": column.definition,
        "task": column.task,
        "split": column.split,
        "component": column.component,
        "unit": column.unit,
        "higher_is_better": column.higher_is_better,
        "seeds": list(effect.seeds),
        "reference_values": list(effect.base),
        "values": list(effect.values),
        "difference": fmean(differences) if differences else None,
        "verdict": effect.verdict,
        "low": effect.low if tested else None,
        "high": effect.high if tested else None,
        "test": test_name(len(differences)) if tested else NOT_ENOUGH,
        "p": effect.p if tested else None,
        "p_holm": effect.corrected if tested else None,
        "tests": effect.tests,
    }


def _facts(pairing: Pairing) -> dict[str, object]:
    setting = {name: value if isinstance(value, str) else bool(value) for name, value in pairing.setting.items()}
    return {**setting, "sparsity": pairing.sparsity, "reference": pairing.reference}


def comma_separated(pairings: Sequence[Pairing]) -> str:
    """Return pairings as CSV, one line an effect; several values in a cell have spaces between them."""
    rows = [_facts(pairing) | record(effect) for pairing in pairings for effect in pairing.effects]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return out.getvalue()


def _cell(value: object) -> object:
    return " ".join(map(repr, value)) if isinstance(value, list) else value


def as_json(pairings: Sequence[Pairing]) -> str:
    """Return pairings as JSON, with every seed's values and the footnotes."""
    found = [
        _facts(pairing) | {"effects": [record(effect) for effect in pairing.effects], "notes": footnotes(pairing)}
        for pairing in pairings
    ]
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _each(style: Callable[[Pairing], str]) -> Callable[[Sequence[Pairing]], str]:
    return lambda pairings: "\n".join(map(style, pairings))


FORMATS: Mapping[str, Callable[[Sequence[Pairing]], str]] = {
    "terminal": _each(terminal),
    "markdown": _each(markdown),
    "csv": comma_separated,
    "json": as_json,
}
