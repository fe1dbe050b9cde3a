"""The examples: scripts run as they are, and the package installs, is found and keeps its contract."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtlprune_bench import run
from mtlprune_bench.commands import run_cli
from mtlprune_bench.store import Store
from mtlprune_bench.testing import CHECKS

EXAMPLES = Path(__file__).parents[1] / "examples"
TOY = str(Path(__file__).parent / "toy_plugin.py")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Return an empty folder, which is the present one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def test_own_model_and_data_makes_a_table_in_forty_lines(elsewhere, capsys):
    script = EXAMPLES / "own_model_and_data.py"
    assert len(script.read_text().splitlines()) < 40
    runpy.run_path(str(script))
    printed = capsys.readouterr().out
    assert "squares: 40 training and 10 test images" in printed
    assert all(f"│ {method} " in printed for method in ("dense", "snip", "disparse-static"))
    assert len(list((elsewhere / "runs").glob("*/rows.parquet"))) == 6


def test_own_training_loop_keeps_what_was_asked_for(elsewhere, capsys):
    runpy.run_path(str(EXAMPLES / "own_training_loop.py"))
    printed = capsys.readouterr().out
    weights = 16 * 64 + 64 * 64 + 64 * 2 + 64
    assert "sparsity 0.9000" in printed
    assert f"kept {weights - round(0.9 * weights)} weights" in printed
    assert not list(elsewhere.iterdir())


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Return the folder into which a copy of the example package is installed."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    shutil.copytree(EXAMPLES / "mtlprune-cosine", source, dirs_exist_ok=True)
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


def test_an_installed_package_is_found_and_runs(package, elsewhere, monkeypatch, capsys):
    assert run_cli(["ls", "cosprune"]) == 2
    monkeypatch.syspath_prepend(package)
    assert run_cli(["ls", "methods"]) == 0
    assert "mtlprune-cosine 0.1.0" in capsys.readouterr().out
    settings = ["--set=method.score.batches=2", "--set=train.steps=8", "--set=finetune.update_every=2"]
    assert run_cli(["run", "--method", "cosprune", "--dataset", "toy", "--plugin", TOY, *settings]) == 0
    assert run_cli(["table", "--format", "csv", "--columns", "sparsity"]) == 0
    assert "cosprune" in capsys.readouterr().out


def test_the_package_passes_its_own_test(package, elsewhere):
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    test = EXAMPLES / "mtlprune-cosine" / "test_mtlprune_cosine.py"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(test.parent),
        str(test),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("." * (4 + len(CHECKS)))


def test_the_code_of_the_document_runs(elsewhere, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "docs" / "api.md").read_text(), re.DOTALL)
    names, data, plugin, masks = blocks
    names = names.replace('"nyuv2"', f'"toy", plugins=[{TOY!r}], settings={{"train.steps": 2}}')
    exec(names, {})
    assert "\\begin{tabular}" in capsys.readouterr().out
    (elsewhere / "mine.py").write_text(data)
    (elsewhere / "plugin.py").write_text(plugin)
    monkeypatch.syspath_prepend(elsewhere)
    (made,) = run("snip", "mine", "net", plugins=["plugin.py"])
    assert made.status == "finished"
    assert len(Store(elsewhere / "runs").runs()) == 3 * (1 + 2 * 2) + 2
    exec(masks, {})
    assert "0.9" in capsys.readouterr().out
