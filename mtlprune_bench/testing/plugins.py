"""Anybody's plugin, by name, file, module or installed distribution, and the verdicts on what it registers."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import inspect
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtlprune_bench.errors import PluginError, UsageError, unknown
from mtlprune_bench.host.hookspecs import PROJECT
from mtlprune_bench.host.registry import REGISTER, Registry, load_registry
from mtlprune_bench.testing.case import Settings
from mtlprune_bench.testing.checks import CONTRACTS, METHODS, OBSERVERS

PREFIX = "check_"


@dataclass(frozen=True)
class Subject:
    """Something to check: its kind, and its name among that kind."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.removesuffix('s')} {self.name}"


@dataclass(frozen=True)
class Verdict:
    """What a check has found; `passed` is None where it asks nothing of its subject, and `reason` says why."""

    subject: Subject
    check: str
    asks: str
    passed: bool | None
    reason: str = ""


def subjects(target: str, load: Callable[[Sequence[str]], Registry]) -> tuple[Registry, list[Subject]]:
    """Return what there is to check of `target`, and the registry that has it.

    `target` is a registered name, a plugin's name, file or module, or an installed distribution; `load(plugins)`
    returns a registry with these plugins besides. Raises UsageError where there is none of these, or nothing to
    check, and PluginError where it cannot be loaded.
    """
    registry, plugins = load(()), [Path(target).stem]
    if target.endswith(".py"):
        registry = load((target,))
    elif found := [one for one in _registered(registry) if one.name in (target, target.partition(":")[0])]:
        return registry, _checkable(target, [Subject(one.kind, target) for one in found])
    elif not (plugins := _loaded(target, registry)):
        registry, plugins = load((_module(target, registry),)), [target]
    for failure in registry.failures:
        if failure.plugin in plugins:
            raise PluginError(f"Plugin '{failure.plugin}' ({failure.origin}) does not load: {failure.problem}.")
    found = [Subject(one.kind, one.name) for one in registry.entries.values() if one.plugin in plugins]
    watching = [Subject(OBSERVERS, name) for name in plugins if _observes(registry, name)]
    return registry, _checkable(target, [*found, *watching])


def _registered(registry: Registry) -> list[Subject]:
    return [Subject(entry.kind, entry.name) for entry in registry.entries.values()]


def _observes(registry: Registry, name: str) -> bool:
    callers = registry.manager.get_hookcallers(registry.manager.get_plugin(name)) or []
    return any(not caller.name.startswith(REGISTER) for caller in callers)


def _loaded(target: str, registry: Registry) -> list[str]:
    """Return the names of the loaded plugins that `target` is: by its own name, its module or its distribution."""
    points = importlib.metadata.entry_points(group=PROJECT)
    installed = {point.name for point in points if point.dist and _normal(point.dist.name) == _normal(target)}
    failed = {failure.plugin for failure in registry.failures}
    named = {
        name
        for name, module in registry.manager.list_name_plugin()
        if target in (name, getattr(module, "__name__", ""))
    }
    return sorted(named | {name for name in installed if name in failed or registry.manager.has_plugin(name)})


def _normal(name: str) -> str:
    """Return the name of a distribution as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _module(target: str, registry: Registry) -> str:
    """Return `target`, the name of a module that is no plugin yet. Raises UsageError where there is none."""
    if Path(target).is_dir():
        raise UsageError(f"{target} is a folder. Install it by pip install -e {target}, or name its file.")
    try:
        if importlib.util.find_spec(target) is not None:
            return target
    except (ImportError, ValueError):
        pass
    known = {*(name for _, name in registry.entries), *(name for name, _ in registry.manager.list_name_plugin())}
    near = difflib.get_close_matches(target, known, n=1)
    raise UsageError(
        f"'{target}' is no registered name, plugin, .py file, module or installed distribution."
        + (f" Did you mean '{near[0]}'?" if near else " mtlbench ls prints the names.")
    )


def _checkable(target: str, found: Sequence[Subject]) -> list[Subject]:
    chosen = [subject for subject in dict.fromkeys(found) if subject.kind in CONTRACTS]
    if chosen:
        return chosen
    kinds = sorted({subject.kind for subject in found})
    what = f"only {', '.join(kinds)}" if kinds else "nothing"
    raise UsageError(f"'{target}' registers {what}; there are contracts for {', '.join(CONTRACTS)}.")


def verdicts(
    found: Sequence[Subject],
    registry: Registry,
    folder: Path,
    only: Collection[str] = (),
    settings: Settings | None = None,
) -> Iterator[Verdict]:
    """Yield the verdict of each check on each subject, one after the other; `folder` is empty at first.

    `only` are the names of the checks to make, with or without "check_". Raises UsageError for unknown ones.
    """
    known = {name_of(check): None for kind in {subject.kind for subject in found} for check in CONTRACTS[kind]}
    chosen = [name.removeprefix(PREFIX) for name in only] or list(known)
    for name in chosen:
        if name not in known:
            raise unknown("check", name, known)
    for subject in found:
        entry = registry.entries.get((subject.kind, subject.name))
        takes = getattr(entry.value, "takes", "") if entry else ""
        if takes:
            reason = f"it needs {takes} behind a colon: check it by that name"
            yield Verdict(subject, "all", "Every check.", None, reason)
            continue
        for check in CONTRACTS[subject.kind]:
            if name_of(check) in chosen:
                yield _verdict(subject, check, registry, folder, settings)


def name_of(check: Callable[..., object]) -> str:
    """Return what a check is called for short."""
    return check.__name__.removeprefix(PREFIX)


def _verdict(
    subject: Subject,
    check: Callable[..., str | None],
    registry: Registry,
    folder: Path,
    settings: Settings | None,
) -> Verdict:
    asks = (inspect.getdoc(check) or "").splitlines()[0]
    try:
        unasked = check(subject.name, registry, folder, settings)
    except AssertionError as error:
        return Verdict(subject, name_of(check), asks, False, str(error))
    return Verdict(subject, name_of(check), asks, None if unasked else True, unasked or "")


def check_plugin(
    target: str,
    registry: Registry | None = None,
    only: Collection[str] = (),
    settings: Settings | None = None,
) -> list[Verdict]:
    """Make all checks of all that `target` registers, and return the verdicts: `mtlbench plugin check` for pytest.

    `target` is a registered name, a plugin's file or module, or an installed distribution. Raises AssertionError
    with everything that is wrong, and UsageError where there is nothing to check.
    """
    given = registry
    registry, found = subjects(target, lambda more: given or load_registry(more))
    return _demand(found, registry, only, settings)


def check_method(
    name: str,
    registry: Registry | None = None,
    only: Collection[str] = (),
    settings: Settings | None = None,
) -> list[Verdict]:
    """Make all checks of the method `name`, and return the verdicts. Raises AssertionError with what is wrong."""
    return _demand([Subject(METHODS, name)], registry or load_registry(), only, settings)


def _demand(
    found: Sequence[Subject], registry: Registry, only: Collection[str], settings: Settings | None
) -> list[Verdict]:
    with tempfile.TemporaryDirectory() as folder:
        made = list(verdicts(found, registry, Path(folder), only, settings))
    if failed := [verdict.reason for verdict in made if verdict.passed is False]:
        raise AssertionError("\n\n".join(failed))
    return made
