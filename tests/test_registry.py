"""The registry: discovery, clashes, failures, blocking, unknown names."""

import os
import sys

import pytest

from mtlprune_bench import PluginError, UsageError
from mtlprune_bench.host.registry import BUILT_IN, load_registry

METHOD = '''"""Prunes nothing, politely."""
from mtlprune_bench import Method, hookimpl, never

@hookimpl
def register_methods(register):
    register(Method(name="{name}", schedule=never()))
'''


@pytest.fixture
def plugin(tmp_path):
    def write(text, name="mine"):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return str(path)

    return write


def test_built_in_things_are_found_with_origin_and_summary():
    registry = load_registry()
    assert not registry.failures
    assert {"dense", "random", "snip", "disparse-static"} <= {e.name for e in registry.of_kind("methods")}
    for entry in registry.entries.values():
        assert entry.origin == BUILT_IN
        assert entry.summary, f"{entry.kind} {entry.name} has no summary"


def test_a_file_is_a_plugin(plugin):
    path = plugin(METHOD.format(name="polite"))
    entry = load_registry([path]).entries["methods", "polite"]
    assert (entry.origin, entry.summary) == (path, "Prunes nothing, politely.")


def test_the_environment_and_modules_name_plugins(plugin, monkeypatch, tmp_path):
    monkeypatch.setenv("MTLBENCH_PLUGINS", plugin(METHOD.format(name="from-environment")))
    plugin(METHOD.format(name="from-module"), "a_plugin_module")
    monkeypatch.syspath_prepend(tmp_path)
    registry = load_registry(["a_plugin_module"])
    assert registry.get("methods", "from-environment").name == "from-environment"
    assert registry.get("methods", "from-module").name == "from-module"
    sys.modules.pop("a_plugin_module")


def test_nothing_that_merely_lies_there_is_run(monkeypatch, tmp_path):
    words = "from pathlib import Path; Path('was-run').touch()\n"
    for name in ("plugins/mine.py", "mtlprune_mine.py", "plugin.py", "conftest.py", "scipy.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(words)
    monkeypatch.chdir(tmp_path)
    assert {entry.origin for entry in load_registry().entries.values()} == {BUILT_IN}
    assert not (tmp_path / "was-run").exists()
    load_registry(["plugin.py"])
    assert (tmp_path / "was-run").exists()


def test_a_metric_that_is_none_is_named(plugin):
    words = "register(__import__('types').SimpleNamespace(name='m', task='t', low=0, high=1))"
    path = plugin(
        f"from mtlprune_bench import hookimpl\n\n@hookimpl\ndef register_metrics(register):\n    {words}\n"
    )
    with pytest.raises(PluginError, match="the metric 'm' without unit, higher_is_better"):
        load_registry([path])


def test_entry_points_are_loaded_with_their_distribution(tmp_path, monkeypatch):
    (tmp_path / "installed_plugin.py").write_text(METHOD.format(name="installed"))
    info = tmp_path / "installed_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[mtlbench]\ninstalled = installed_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_registry().entries["methods", "installed"].origin == "installed-plugin 1.2"
    assert ("methods", "installed") not in load_registry(blocked=["installed"]).entries
    sys.modules.pop("installed_plugin")


def test_one_file_named_twice_is_one_plugin_and_two_of_one_name_are_refused(plugin, tmp_path, monkeypatch):
    path = plugin(METHOD.format(name="polite"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTLBENCH_PLUGINS", "mine.py")
    assert load_registry([path]).get("methods", "polite").name == "polite"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(METHOD.format(name="calm"))
    with pytest.raises(PluginError, match=r"Two plugins are called 'mine': .*/mine\.py and .*/other/mine\.py\."):
        load_registry(["other/mine.py"])


def test_a_name_taken_twice_names_both_plugins(plugin):
    with pytest.raises(PluginError, match=r"'mine' \(.*mine.py\) registers 'snip'.*'methods.snip' \(built in\)"):
        load_registry([plugin(METHOD.format(name="snip"))])


def test_blocking_makes_room_for_another(plugin):
    registry = load_registry([plugin(METHOD.format(name="snip"))], blocked=["methods.snip"])
    assert registry.entries["methods", "snip"].plugin == "mine"


def test_blocking_what_does_not_exist_is_an_error():
    with pytest.raises(UsageError, match=r"Did you mean 'methods\.snip'"):
        load_registry(blocked=["methods.snipp"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import nonexistent_library", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        (METHOD.format(name="half") + "    raise ValueError('late')\n", "ValueError: late"),
    ],
)
def test_a_plugin_that_fails_is_listed_and_the_rest_still_work(plugin, text, problem):
    registry = load_registry([plugin(text)])
    (failure,) = registry.failures
    assert failure.plugin == "mine"
    assert problem in failure.problem
    assert "Traceback" in failure.trace
    assert registry.get("methods", "snip").name == "snip"
    assert ("methods", "half") not in registry.entries


def test_a_misspelt_hook_is_an_error(plugin):
    text = "from mtlprune_bench import hookimpl\n@hookimpl\ndef register_method(register): pass\n"
    with pytest.raises(PluginError, match="register_method"):
        load_registry([plugin(text)])


def test_a_hook_with_arguments_that_do_not_exist_is_an_error(plugin):
    text = "from mtlprune_bench import hookimpl\n@hookimpl\ndef run_started(runn): pass\n"
    with pytest.raises(PluginError, match="runn"):
        load_registry([plugin(text)])


def test_a_thing_without_a_name_is_an_error(plugin):
    text = "from mtlprune_bench import hookimpl\n@hookimpl\ndef register_methods(register): register(3)\n"
    with pytest.raises(PluginError, match="without a name"):
        load_registry([plugin(text)])


@pytest.mark.parametrize("target", ["missing.py", "no_such_module_at_all", "no.such.module"])
def test_a_plugin_that_is_not_there_is_an_error(target):
    with pytest.raises(UsageError, match=r"(?i)plugin"):
        load_registry([target])


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("methods", "snipp", r"Unknown method 'snipp'. Did you mean 'snip'\?"),
        ("models", "timm", "needs a timm backbone, such as resnet18 behind it"),
        ("models", "timm:", "needs a timm backbone"),
        ("models", "deeplab-small:3", "takes nothing behind a colon"),
        ("arbiters", "at-least:x", "whole number"),
    ],
)
def test_unknown_names_say_what_is_known(kind, name, message):
    with pytest.raises(UsageError, match=message):
        load_registry().get(kind, name)


def test_names_may_carry_an_argument():
    registry = load_registry()
    assert registry.get("models", "timm:resnet18").argument == "resnet18"
    assert registry.get("arbiters", "at-least:2").votes == 2


def test_plugins_are_left_out_by_the_environment_too(monkeypatch):
    monkeypatch.setenv("MTLBENCH_BLOCKED", os.pathsep.join(["methods.snip", "methods.grasp"]))
    registry = load_registry()
    names = {entry.name for entry in registry.of_kind("methods")}
    assert not names & {"snip", "grasp"}
    assert {"rigl", "random"} <= names
    assert set(registry.blocked) == {"methods.snip", "methods.grasp"}
