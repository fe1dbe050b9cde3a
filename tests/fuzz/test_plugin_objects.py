"""Plugins: whatever one registers, or raises, is listed, left out with its own words, or refused by name."""

import importlib.metadata
import sys

import pytest
from hypothesis import strategies as st
from inputs import ODD, TREES, fuzz, sizes

from mtlprune_bench.errors import MtlbenchError, PluginError, UsageError
from mtlprune_bench.host import hookspecs
from mtlprune_bench.host.hookspecs import PROJECT
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.host.scaffold import KINDS, module_name, write_file
from mtlprune_bench.runs.catalogue import list_kinds

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("register_"))
NAMES = st.sampled_from(["snip", "a", "", "a:b", "a b", "../x", "é", "a\nb", "-x", "x" * 300]) | st.text(
    max_size=8
)
RAISED = [
    "ValueError('x')",
    "SystemExit(3)",
    "RecursionError()",
    "KeyError(None)",
    "UnicodeDecodeError('a',b'',0,1,'')",
]
PROGRAM = """
from types import SimpleNamespace
from mtlprune_bench import hookimpl

@hookimpl
def {hook}({arguments}):
    {body}
"""


@pytest.fixture
def file(tmp_path):
    yield tmp_path / "stranger.py"
    sys.modules.pop("mtlbench_plugin_stranger", None)


def load(file):
    """Load a plugin, list all that it has registered, and return the registry."""
    registry = load_registry([str(file)], built_in=False)
    assert all(isinstance(cell, str) for table in list_kinds(registry, None) for row in table[1] for cell in row)
    assert all(failure.problem and failure.trace for failure in registry.failures)
    list_kinds(registry, "plugins")
    return registry


@st.composite
def programs(draw):
    """Return a plugin that registers something with any facts, or raises."""
    facts = draw(
        st.dictionaries(st.sampled_from(["name", "description", "task", "help", "takes"]), NAMES | ODD | TREES)
    )
    registered = f"register(SimpleNamespace(**{facts!r}))"
    body = draw(
        st.sampled_from([registered, f"{registered}; {registered}", "register()", "register(1)", "register(None)"])
    )
    if draw(st.booleans()):
        body = f"raise {draw(st.sampled_from(RAISED))}" if draw(st.booleans()) else f"{body}; 1 / 0"
    hook = draw(st.sampled_from([*HOOKS, "step_finished", "register_nothing"]))
    arguments = draw(st.sampled_from(["register", "register", "register", "", "other", "register, more"]))
    return PROGRAM.format(hook=hook, arguments=arguments, body=body).replace("nan", "0").replace("inf", "1")


@sizes(3_000)
def test_what_plugins_register(count, file, tmp_path, capsys):
    def target(text):
        file.write_bytes(text.encode("utf-8", "replace"))
        load(file)

    fuzz(target, programs(), count, tmp_path, capsys, MtlbenchError)


@sizes(3_000)
def test_files_that_are_no_plugins(count, file, tmp_path, capsys):
    def target(data):
        file.write_bytes(data)
        assert load(file).failures or not load(file).entries

    words = st.lists(
        st.sampled_from(["def", "(", ")", "\n", "    ", "lambda", "=", "1", "'", "import", "x", ":", "@", "\\"])
    )
    fuzz(target, st.binary() | words.map(" ".join).map(str.encode), count, tmp_path, capsys, MtlbenchError)


@sizes(3_000)
def test_entry_points_of_packages(count, tmp_path, capsys, monkeypatch):
    """Names and targets as they stand in the metadata of any installed package."""
    given = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: given if group == PROJECT else [])

    def target(points):
        given[:] = [importlib.metadata.EntryPoint(name, value, PROJECT) for name, value in points]
        registry = load_registry(built_in=False)
        assert len(registry.failures) <= len(points)
        list_kinds(registry, "plugins")

    values = (
        st.sampled_from(["os", "os:path", "no_such", "no such", "os:", ":x", "a.b:c.d", "json [x]", ""])
        | st.text()
    )
    strategy = st.lists(st.tuples(NAMES, values), max_size=3)
    fuzz(target, strategy, count, tmp_path, capsys, (PluginError, UsageError))


@sizes(3_000)
def test_names_of_new_plugins(count, tmp_path, capsys):
    def target(given):
        name, kind = given
        path = write_file(name, kind, tmp_path)
        assert path.parent == tmp_path
        assert path.stem == module_name(name)
        path.unlink()

    letters = st.text("ab-09._/ A\0é", max_size=8)
    fuzz(target, st.tuples(NAMES | letters, st.sampled_from(KINDS) | NAMES), count, tmp_path, capsys, UsageError)
