"""The README: its plugin and its study work as printed."""

import re
import tomllib
from pathlib import Path

import pytest

from mtlprune_bench.commands import run_cli

README = (Path(__file__).parents[1] / "README.md").read_text()
PLUGIN = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
STUDY = re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the files that the README shows."""
    (tmp_path / "largest.py").write_text(PLUGIN)
    (tmp_path / "benchmarks").symlink_to(Path(__file__).parents[1] / "benchmarks")
    (tmp_path / "study.toml").write_text("\n".join(line.removeprefix("  ") for line in STUDY.splitlines()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_the_plugin_is_listed_and_planned(folder, capsys):
    assert run_cli(["ls", "methods", "--plugin", "largest.py"]) == 0
    assert "Keeps the weights with the largest magnitude" in capsys.readouterr().out


def test_the_study_is_toml_that_a_run_understands(folder, capsys):
    assert tomllib.loads((folder / "study.toml").read_text())["train"]["steps"] == 200
    assert run_cli(["plan", "--config", "study.toml"]) == 0
    assert capsys.readouterr().out.count("updates of the masks") == 12


def test_the_plugin_is_as_short_as_promised():
    assert len(PLUGIN.strip().splitlines()) <= 20
