"""Executes runs one after the other, in this process."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mtlprune_bench import Register, hookimpl


@dataclass(frozen=True)
class Local:
    """One run after the other, in this process."""

    name: str = field(default="local", init=False)

    def __call__(self, experiments: Iterable[Any], execute: Callable[[Any], Any]) -> Iterator[Any]:
        """Yield the rows of each experiment, in order."""
        return map(execute, experiments)


@hookimpl
def register_runners(register: Register) -> None:
    """Register the runner."""
    register(Local())
