"""The check of observers: they see everything, and change nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor

from mtlprune_bench.runs.observe import Observers
from mtlprune_bench.testing.case import Case, plain, watched_by
from mtlprune_bench.testing.checks import OBSERVERS, contract


@contract(OBSERVERS)
def check_inert(case: Case) -> str | None:
    """It gets through every event, leaves what it is told alone, and the run ends with the same bytes."""
    with case.store() as store:
        alone = case.run(store / "alone")
        with _listening() as (meddled, failures):
            watched = dataclasses.replace(case, registry=watched_by(case.registry, case.value)).run(
                store / "watched"
            )
        assert not failures, f"fails: {failures[0]}"
        assert not meddled, f"writes to what it is told in {', '.join(dict.fromkeys(meddled))}. Work on a copy."
        differing = alone.difference(watched)
    assert not differing, (
        f"changes the {differing} of a run that it watches. Leave the run's files and network alone."
    )
    return None


@contextlib.contextmanager
def _listening() -> Iterator[tuple[list[str], list[str]]]:
    """Give the events in which facts are changed while they are told, and what observers fail with."""
    meddled: list[str] = []
    failures: list[str] = []
    told = Observers._tell

    def tell(observers: Observers, event: str, **facts: Any) -> None:
        before = _frozen(facts)
        told(observers, event, **facts)
        if _frozen(facts) != before:
            meddled.append(event)

    with mock.patch.object(Observers, "_tell", tell), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield meddled, failures
        failures += [str(one.message) for one in caught if str(one.message).startswith("Observer ")]


def _frozen(fact: Any) -> Any:
    """Return a value that is equal later only if the fact has not changed."""
    if isinstance(fact, Tensor):
        return plain(fact)
    if isinstance(fact, np.ndarray):
        return fact.tobytes()
    if isinstance(fact, Mapping):
        return {name: _frozen(value) for name, value in fact.items()}
    return [_frozen(value) for value in fact] if isinstance(fact, list) else repr(fact)
