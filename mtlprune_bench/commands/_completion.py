"""What the tab key completes: names and settings, kept in a file, as plugins take seconds to load."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from mtlprune_bench import __version__
from mtlprune_bench.errors import MtlbenchError

if TYPE_CHECKING:
    from mtlprune_bench.host.registry import Registry

Words = dict[str, dict[str, str]]
"""By kind the words that there are, each with what it is in a line."""
Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

PLUGINS = "mtlbench.plugins"
BLOCKED = "mtlbench.blocked"
"""Where the whole command line keeps what --plugin and --block have named."""

SETTINGS = "settings"
FILE = "completion.json"


def completing(kind: str) -> Complete:
    """Return what completes an option whose value is a name of `kind`, or several with commas between."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        begun, comma, last = incomplete.rpartition(",")
        try:
            words = known_words(ctx.meta.get(PLUGINS, ()), ctx.meta.get(BLOCKED, ())).get(kind, {})
        except MtlbenchError:
            return []  # There is nobody to tell: the command itself will.
        return [
            CompletionItem(begun + comma + word, help=text)
            for word, text in words.items()
            if word.startswith(last)
        ]

    return complete


def known_words(plugins: Sequence[str] = (), blocked: Sequence[str] = ()) -> Words:
    """Return all words: those that were kept, while no file of a plugin or of this package has changed."""
    from mtlprune_bench.store import read_json, write_json

    path, key = cache_folder() / FILE, state(plugins, blocked)
    with contextlib.redirect_stdout(io.StringIO()):  # What plugins print is no completion.
        kept = read_json(path)
        if isinstance(kept, dict) and kept.get("key") == key:
            words: Words = kept["words"]
            return words
        from mtlprune_bench.host.registry import load_registry

        words = words_of(load_registry(plugins, blocked))
    with contextlib.suppress(MtlbenchError):  # Where nothing can be kept, all is looked up again.
        write_json(path, {"key": key, "words": words})
    return words


def cache_folder() -> Path:
    """Return the folder of the cache, as runs have it, without importing what they need."""
    import platformdirs

    return Path(os.environ.get("MTLBENCH_CACHE") or platformdirs.user_cache_dir("mtlprune-bench"))


def words_of(registry: Registry) -> Words:
    """Return the words of a registry: names by kind, and settings."""
    from mtlprune_bench.host.registry import KINDS
    from mtlprune_bench.pruning.method import JOINT, PER_TASK
    from mtlprune_bench.runs import catalogue

    words: Words = {"scopes": dict.fromkeys((JOINT, PER_TASK), "")}
    tables = [catalogue.general_settings()]
    for kind in KINDS:
        words[kind] = {}
        for entry in registry.of_kind(kind):
            takes = ":" if getattr(entry.value, "takes", "") else ""
            words[kind][entry.name + takes] = entry.summary
            tables += catalogue.tables(registry, entry.name)
    settings = {row[0]: row[2] for _, rows, headings in tables if headings == catalogue.SETTINGS for row in rows}
    words[SETTINGS] = {f"{name}=": settings[name] for name in sorted(settings) if "." in name}
    return words


def state(plugins: Sequence[str], blocked: Sequence[str]) -> str:
    """Return a digest of what the words depend on: versions, and the files of this package and of plugins."""
    named = [name for name in os.environ.get("MTLBENCH_PLUGINS", "").split(os.pathsep) if name]
    points = [(point.name, point.value, point.dist and point.dist.version) for point in _points()]
    facts = [__version__, plugins, blocked, os.environ.get("MTLBENCH_BLOCKED", ""), named, points]
    targets = [*named, *plugins, *(point.module for point in _points())]
    files = [path for path in [*_own(), *(path for target in targets for path in _of(target))] if path.is_file()]
    stats = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    return hashlib.sha256(repr([facts, stats]).encode()).hexdigest()


def _points() -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group="mtlbench")


def _own() -> Iterator[Path]:
    """Yield the files of this package and of the built-in plugins."""
    for name in ("mtlprune_bench", "mtlprune_bench.plugins"):
        for folder in getattr(importlib.util.find_spec(name), "submodule_search_locations", None) or ():
            yield from sorted(Path(folder).rglob("*.py"))


def _of(target: str) -> Iterator[Path]:
    """Yield the file of a plugin that was named by its path or by its module."""
    yield Path(target)
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(target.partition(".")[0])
        for folder in getattr(found, "submodule_search_locations", None) or ():
            yield from sorted(Path(folder).rglob("*.py"))
        yield Path(getattr(found, "origin", None) or "")
