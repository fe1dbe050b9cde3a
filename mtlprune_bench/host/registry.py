"""The registry: what plugins have registered, by kind and name, with where it came from."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from mtlprune_bench.errors import PluginError, UsageError, unknown
from mtlprune_bench.host import hookspecs
from mtlprune_bench.host.hookspecs import PROJECT

PLUGINS = "mtlprune_bench.plugins"
BUILT_IN = "built in"
REGISTER = "register_"
KINDS = tuple(name.removeprefix(REGISTER) for name in vars(hookspecs) if name.startswith(REGISTER))

METRIC = ("task", "unit", "higher_is_better", "low", "high")
"""What a metric has to have to be listed."""


@dataclass(frozen=True)
class Entry:
    """A registered thing: its kind and name, what it is, which plugin registered it, from where."""

    kind: str
    name: str
    value: Any
    plugin: str
    origin: str
    summary: str


@dataclass(frozen=True)
class Failure:
    """A plugin that could not be loaded, and its own traceback."""

    plugin: str
    origin: str
    problem: str
    trace: str


@dataclass
class Registry:
    """All registered things; `hook` calls the observers. `plugins` and `blocked` are what it was loaded with."""

    manager: pluggy.PluginManager
    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    plugins: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    @property
    def hook(self) -> pluggy.HookRelay:
        """Return the relay that calls every plugin's observer hooks."""
        return self.manager.hook

    def of_kind(self, kind: str) -> list[Entry]:
        """Return the entries of a kind, sorted by name."""
        return sorted((entry for entry in self.entries.values() if entry.kind == kind), key=lambda e: e.name)

    def get(self, kind: str, name: str) -> Any:
        """Return the thing of `kind` called `name`, or `name:argument` where it takes one.

        Raises UsageError for an unknown name.
        """
        base, _, argument = name.partition(":")
        entry = self.entries.get((kind, name)) or self.entries.get((kind, base))
        if entry is None:
            problem = unknown(kind.removesuffix("s"), name, [entry.name for entry in self.of_kind(kind)])
            raise UsageError(f"{problem} Others come with plugins: --plugin FILE, or MTLBENCH_PLUGINS.")
        takes = getattr(entry.value, "takes", "")
        if entry.name == name:
            if takes:
                raise UsageError(f"'{name}' needs {takes} behind it, as in {name}:{takes.split()[-1]}.")
            return entry.value
        if not takes:
            raise UsageError(f"'{base}' takes nothing behind a colon, so '{name}' has no meaning.")
        if not argument:
            raise UsageError(f"'{name}' needs {takes} behind the colon.")
        return entry.value.with_argument(argument)

    def metrics_of(self, task: str) -> list[Any]:
        """Return the metrics of a task, in the order in which they were registered."""
        return [
            entry.value for entry in self.entries.values() if entry.kind == "metrics" and entry.value.task == task
        ]

    def add(self, kind: str, value: Any, plugin: str, origin: str, module: Any) -> None:
        """Add `value`. Raises PluginError where it lacks what lists show, or another plugin has taken its name."""
        name = getattr(value, "name", None)
        if not isinstance(name, str) or not name:
            raise PluginError(f"Plugin '{plugin}' ({origin}) registered one of its {kind} without a name.")
        lacking = [fact for fact in METRIC if not hasattr(value, fact)] if kind == "metrics" else []
        if lacking:
            raise PluginError(
                f"Plugin '{plugin}' ({origin}) registered the metric '{name}' without {', '.join(lacking)}. "
                "A metric is a mtlprune_bench.Metric."
            )
        key = f"{value.task}.{name}" if kind == "metrics" else name
        taken = self.entries.get((kind, key))
        if taken is not None:
            raise PluginError(
                f"Plugin '{plugin}' ({origin}) registers '{key}' among the {kind}, but plugin '{taken.plugin}' "
                f"({taken.origin}) already has. Rename one, or block one with --block."
            )
        self.entries[kind, key] = Entry(kind, key, value, plugin, origin, summary_of(value, module))


def summary_of(value: Any, module: Any) -> str:
    """Return one line about a registered thing: its own description, else its plugin's, else its class's."""
    if getattr(value, "description", ""):
        return str(value.description)
    if getattr(value, "help", ""):
        return str(value.help).splitlines()[0]
    documented = module if type(value).__name__ in ("Method", "LearnedMethod") else type(value)
    return (inspect.getdoc(documented) or "").split("\n")[0]


def load_registry(plugins: Sequence[str] = (), blocked: Sequence[str] = (), built_in: bool = True) -> Registry:
    """Load the built-in plugins, installed ones, those of MTLBENCH_PLUGINS and `plugins` (files or modules).

    Those in `blocked` and in MTLBENCH_BLOCKED are left out.

    A plugin that fails to import or to register is listed in `failures`, and the rest still work. Raises
    PluginError where two plugins register one name, or a hook is misspelt, and UsageError for a blocked or
    named plugin that does not exist.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    blocked = [*_named_in("MTLBENCH_BLOCKED"), *blocked] if built_in else blocked
    registry = Registry(manager, plugins=tuple(plugins), blocked=tuple(blocked))
    for name in blocked:
        manager.set_blocked(name)
    seen = set()
    for name, origin, load in _found(plugins, built_in):
        seen.add(name)
        if not manager.is_blocked(name):
            _load(registry, name, origin, load)
    if missing := [name for name in blocked if name not in seen]:
        raise unknown("plugin to block", missing[0], seen)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{error} Known hooks: {', '.join(sorted(vars(manager.hook)))}.") from error
    return registry


def _named_in(variable: str) -> list[str]:
    """Return the names in an environment variable, which has the system's separator of paths between them."""
    return [name for name in os.environ.get(variable, "").split(os.pathsep) if name]


def _load(registry: Registry, name: str, origin: str, load: Any) -> None:
    """Import one plugin and collect what it registers."""
    before = dict(registry.entries)
    try:
        module = load()
        if not any(_hooks_of(module)):
            return
        if (other := registry.manager.get_plugin(name)) is not None:
            where = getattr(other, "__file__", "another place")
            raise PluginError(f"Two plugins are called '{name}': {where} and {origin}. Rename one of them.")
        registry.manager.register(module, name)
        for hook, implementation in _hooks_of(module):
            if hook.startswith(REGISTER):
                kind = hook.removeprefix(REGISTER)
                implementation(lambda value, kind=kind: registry.add(kind, value, name, origin, module))
    except PluginError:
        raise
    except pluggy.PluginValidationError as error:
        raise PluginError(f"Plugin '{name}' ({origin}): {error}") from error
    except (Exception, SystemExit) as error:
        if registry.manager.has_plugin(name):
            registry.manager.unregister(name=name)
            registry.entries = before
        problem = f"{type(error).__name__}: {error}"
        registry.failures.append(Failure(name, origin, problem, traceback.format_exc()))


def _hooks_of(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and function of each hook that a plugin implements."""
    for name, value in vars(module).items():
        if getattr(value, f"{PROJECT}_impl", None) is not None:
            yield name, value


def _found(plugins: Sequence[str], built_in: bool) -> Iterator[tuple[str, str, Any]]:
    """Yield the name, origin and loader of every plugin: built in, installed, named."""
    if built_in:
        for folder in pkgutil.iter_modules(importlib.import_module(PLUGINS).__path__):
            yield from _built_in(folder)
    for point in importlib.metadata.entry_points(group=PROJECT):
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        yield point.name, origin, point.load
    named = [_named(target) for target in [*_named_in("MTLBENCH_PLUGINS"), *plugins]]
    yield from {origin: (name, origin, load) for name, origin, load in named}.values()


def _built_in(found: pkgutil.ModuleInfo) -> Iterator[tuple[str, str, Any]]:
    """Yield the built-in plugins of one file of `plugins/`, or of each file or package in one folder of it."""
    qualified = f"{PLUGINS}.{found.name}"
    names = [found.name]
    if found.ispkg:
        folder = importlib.import_module(qualified)
        names = [f"{found.name}.{inner.name}" for inner in pkgutil.iter_modules(folder.__path__)]
    for name in names:
        full = f"{PLUGINS}.{name}"
        yield name, BUILT_IN, lambda full=full: importlib.import_module(full)


def _named(target: str) -> tuple[str, str, Any]:
    """Return the plugin of a file or a module that the user named. Raises UsageError where there is none."""
    path = Path(target)
    if target.endswith(".py") or path.exists():
        if not path.is_file():
            raise UsageError(f"There is no plugin file {path}.")
        return path.stem, str(path.resolve()), lambda: _import_file(path.resolve())
    try:
        found = importlib.util.find_spec(target)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UsageError(f"Plugin '{target}' is neither a file nor a module that can be imported.")
    return target, found.origin or target, lambda: importlib.import_module(target)


def _import_file(path: Path) -> ModuleType:
    """Import a plugin from its file, under a name that cannot hide an installed module."""
    name = f"mtlbench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
