"""The README: its plugin works as printed, and each of its commands is understood."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from mtlprune_bench.commands import run_cli

README = (Path(__file__).parents[1] / "README.md").read_text()
PLUGIN = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
STUDY = re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1]
COMMANDS = [line.split(" #")[0].strip() for line in README.splitlines() if line.startswith("mtlbench ")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the files that the README shows."""
    (tmp_path / "largest.py").write_text(PLUGIN)
    (tmp_path / "benchmarks").symlink_to(Path(__file__).parents[1] / "benchmarks")
    (tmp_path / "study.toml").write_text("\n".join(line.removeprefix("  ") for line in STUDY.splitlines()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] in ("run", "plan", "ls")])
def test_commands_are_understood(command, folder, capsys):
    words = shlex.split(command)[1:]
    # A plan reads every name and setting of a run, and trains nothing.
    words[0] = "plan" if words[0] == "run" else words[0]
    assert run_cli(words) == 0, capsys.readouterr().err


def test_the_plugin_is_listed_and_planned(folder, capsys):
    assert run_cli(["ls", "methods", "--plugin", "largest.py"]) == 0
    assert "Keeps the weights with the largest magnitude" in capsys.readouterr().out


def test_the_study_is_toml_that_a_run_understands(folder, capsys):
    assert tomllib.loads((folder / "study.toml").read_text())["train"]["steps"] == 200
    assert run_cli(["plan", "--config", "study.toml"]) == 0
    assert capsys.readouterr().out.count("updates of the masks") == 12


def test_the_plugin_is_as_short_as_promised():
    assert len(PLUGIN.strip().splitlines()) <= 20
