"""The documents: their commands run, their tests exist, every method has its place in fidelity.md."""

import os
import re
import shlex
import shutil
from pathlib import Path

import click
import pandas as pd
import pytest

from benchmarks.rows import page
from mtlprune_bench.commands import cli, run_cli
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.host.scaffold import write_file
from mtlprune_bench.results.comparisons import comparisons

TESTS = Path(__file__).parent
FIDELITY, DATA = ((TESTS.parent / "docs" / name).read_text() for name in ("fidelity.md", "data.md"))


def test_every_method_has_a_section():
    heads = " ".join(line for line in FIDELITY.splitlines() if line.startswith(("## ", "| dense")))
    words = set(re.split(r"[ ,|]+", heads))
    methods = {entry.name for entry in load_registry().of_kind("methods")}
    assert methods <= words, f"missing: {sorted(methods - words)}"


@pytest.mark.parametrize(("document", "fewest"), [(FIDELITY, 50), (DATA, 27)], ids=["fidelity", "data"])
def test_every_test_that_holds_a_fact_exists(document, fewest):
    code = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", document))
    assert len(named) > fewest
    assert named <= known, f"missing: {sorted(named - known)}"


def test_every_trap_has_a_line_with_a_test():
    lines = re.findall(r"^\| (\d+) \|.*`test_\w+` \|$", DATA, re.MULTILINE)
    assert lines == [str(number) for number in range(1, 28)]


def test_every_dataset_with_files_and_every_layout_is_described():
    for entry in load_registry().of_kind("datasets"):
        if entry.value.files is not None:
            assert {entry.name, *(layout.name for layout in entry.value.files.layouts)} <= set(
                re.findall(r"`([\w-]+)`", DATA)
            )


def test_the_tables_in_print_are_those_of_the_rows():
    results = TESTS.parent / "benchmarks" / "results"
    found = comparisons(pd.read_parquet(results / "methods.parquet"))
    assert len(found) == 1, "one setting, so one table"
    assert page(found[0]).strip() in (results / "README.md").read_text()


# Commands: each is executed as it is printed, in a folder with what its readers have by then, on a stand-in so
# small that it takes no time. Where that is not enough, the first line of SHORTER that fits says what is changed.

ROOT = TESTS.parent
STAND_IN = str(TESTS / "stand_in_plugin.py")
READ = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(?:console|sh)?\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
TWO_STEPS = "--set train.steps=2 --set finetune.steps=2"
FEW_STEPS = "--set train.steps=20 --set train.update_every=2 --set train.crop=16"

SHORTER = [
    # The whole grid takes an hour; one of its methods shows that the file is understood and runs.
    (r"^run --config benchmarks/methods", f"--method snip --seeds 1 {TWO_STEPS}"),
    (r"^run --config benchmarks/overfit", f"--set train.crop=16 {TWO_STEPS}"),
    # On files that are found the paper's network and recipe are the default.
    (r"^run .*--dataset my-rooms", f"--model tiny-net {TWO_STEPS}"),
    (r"^run .*--data-root", f"--model tiny-net --set train.crop=16 {TWO_STEPS}"),
    # Two workers are two processes, which import torch for five seconds; tests/test_suite.py has them.
    (r"^suite run benchmarks/quick", f"--workers 1 --only snip-* {FEW_STEPS}"),
    (r"^suite retry", f"--only snip-* {FEW_STEPS}"),
    (r"^suite (plan|status) benchmarks/quick", "--only snip-* --only magnitude-*"),
    (r"^suite plan", "--only snip-*"),
    (r"^data synth", "--size 24x32"),
    # All of a method's checks take seconds; tests/test_plugin_command.py makes them.
    (r"^plugin check (largest|my_method|my-method)((?!--only).)*$", "--only plan"),
    (r"^plugin check my_rooms", "--only samples"),
    (r"^plugin check my_net", "--only outputs"),
    (r"^export ((?!--format).)*$", "--format safetensors --format packed"),
    (r"^measure", "--repeats 3"),
]

NOT_RUN = {
    r"^mtlbench suite run .*--ray-address auto": "needs a Ray cluster and the files of NYU-v2; click reads it",
    r"^mtlbench export .*--format onnx": "importing the exporter takes seconds; tests/test_export.py has it",
    r"^mtlbench run .*overfit-taskonomy": "to draw its images takes seconds; tests/test_overfit.py has it",
}
"""Commands of mtlbench that are parsed and not executed, and why."""

ELSEWHERE = {
    r"^make (demo|test|lint)$": ".ci/run runs test and lint, which include what demo does",
    r"^make audit$": ".ci/run runs it where PyPI, which it asks, answers",
    r"^make oldest$": "all tests once more, in a quarter of an hour",
    r"^pip install ": ".ci/run installs by make; test_plugin_command.py and test_examples.py install packages",
    r"^python -m pytest": "this is it; test_mine.py is run by tests/test_contract.py",
    r"^python -m benchmarks\.": "minutes of measuring; tests/test_speed.py has parts",
}
"""Commands of other programs, and what runs them."""


def commands_of(path):
    """Return the commands in a document's blocks of commands, without their comments."""
    found = []
    for _, block in BLOCK.findall(path.read_text()):
        lines = [line.split("  #")[0].split(" # ")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
        found += [line for line in lines if re.match(r"(mtlbench|make|pip|python|tensorboard|torchrun)\b", line)]
    return found


ALL = list(dict.fromkeys(command for path in READ for command in commands_of(path)))
OURS = [command for command in ALL if command.startswith("mtlbench ")]
RUN = [command for command in OURS if not any(re.search(pattern, command) for pattern in NOT_RUN)]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Return a folder with what readers of the documents have: results, data, plugins, suites."""
    folder = tmp_path_factory.mktemp("library")
    readme = (ROOT / "README.md").read_text()
    (folder / "largest.py").write_text(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1])
    for name, kind in (
        ("my-method", "method"),
        ("my-rooms", "dataset"),
        ("my-net", "model"),
        ("my-watcher", "observer"),
    ):
        write_file(name, kind, folder)
    with pytest.MonkeyPatch.context() as patch:
        quick_stand_in(patch, folder)
        for options in (
            ("--method", "snip,disparse-static", "--sparsity", "0.5,0.9", "--seeds", "2"),
            ("--method", "dense,lth", "--seeds", "2"),
            ("--method", "lth", "--set", "method.control=shuffled"),
            ("--method", "gmp,rigl"),
            ("--method", "adapmtl", "--set", "method.variant=short"),
        ):
            assert run_cli(["run", "--dataset", "nyuv2", *options]) == 0
        made = ("--layout", "adashare", "--count", "2", "--size", "24x32", "--output", "DIR/nyuv2")
        assert run_cli(["data", "synth", "nyuv2", *made]) == 0
    return folder


def quick_stand_in(patch, folder):
    patch.chdir(folder)
    patch.setenv("COLUMNS", "200")
    patch.setenv("MTLBENCH_BLOCKED", os.pathsep.join(["observers.tensorboard", "datasets.scenes"]))
    patch.setenv("MTLBENCH_PLUGINS", STAND_IN)


@pytest.fixture
def place(library, tmp_path, monkeypatch):
    """Return a folder of a test's own with the files of `library` and the suites."""
    shutil.copytree(library, tmp_path / "here")
    (tmp_path / "here" / "benchmarks").symlink_to(ROOT / "benchmarks")
    quick_stand_in(monkeypatch, tmp_path / "here")
    return tmp_path / "here"


def executed(command, place):
    """Return the words by which `command` is executed in `place`: names filled in, and made short."""
    line = command.removeprefix("mtlbench ")
    line += " " + next((more for pattern, more in SHORTER if re.search(pattern, line)), "")
    for name in ("node1", "node2") if "/mnt/" in line else ():
        shutil.copytree(place / "runs", place / "mnt" / name / "runs")
    line = line.replace("/mnt/", "mnt/").replace(" RUN", " snip-nyuv2-0.9-s0")
    if line.startswith("data synth"):
        line = line.replace("--output DIR", "--output made")
    if line.startswith("plugin new"):  # The first reader has no such plugin yet.
        for path in place.glob("my_*.py"):
            path.unlink()
    elif "my-method" in line and "--plugin" not in line:  # As `pip install` would have it.
        os.environ["MTLBENCH_PLUGINS"] = os.pathsep.join([STAND_IN, str(place / "my_method.py")])
    return shlex.split(line)


@pytest.mark.parametrize("command", RUN)
def test_every_command_of_the_documents_runs(command, place, capsys, monkeypatch):
    monkeypatch.setenv("MTLBENCH_PLUGINS", STAND_IN)
    assert run_cli(executed(command, place)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in OURS if command not in RUN])
def test_what_is_not_run_is_understood_by_click(command):
    found, words = cli, shlex.split(command)[1:]
    while isinstance(found, click.Group):
        found = found.get_command(click.Context(cli), words.pop(0))
    assert found.make_context(command, words).params


def test_every_command_is_run_or_there_is_a_reason():
    others = [command for command in ALL if command not in OURS]
    assert len(RUN) > 60
    assert len(others) > 5
    reasons = NOT_RUN | ELSEWHERE
    assert not [
        command for command in ALL if command not in RUN and not any(re.search(p, command) for p in reasons)
    ]


PLUGINS = [
    (path, number, text)
    for path in READ
    if path.stem.startswith("add-") or path.stem == "hooks"
    for number, text in enumerate(
        re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)
    )
]


@pytest.mark.parametrize(("path", "number", "text"), PLUGINS, ids=[f"{path.stem}-{n}" for path, n, _ in PLUGINS])
def test_every_plugin_in_print_is_loaded_and_takes_part_in_a_run(path, number, text, place, capsys):
    (place / "printed.py").write_text(text)
    before, after = (
        {(e.kind, e.name) for e in load_registry(given).of_kind("methods")} for given in ([], ["printed.py"])
    )
    methods = [name for _, name in after - before] or ["gmp"]
    assert ("register_methods" in text) == (methods != ["gmp"])
    command = [
        "run",
        "--plugin",
        "printed.py",
        "--dataset",
        "nyuv2",
        "--store",
        "new",
        "--method",
        ",".join(methods),
    ]
    assert run_cli(command) == 0, capsys.readouterr().err
    assert "could not be loaded" not in capsys.readouterr().err


def test_there_are_plugins_in_print():
    assert len(PLUGINS) >= 4
