"""`mtlbench plugin`: what it writes works untouched, and what is wrong with a plugin is found and said."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mtlprune_bench.host.scaffold import KINDS, module_name, write_file, write_package
from mtlprune_bench.testing import CONTRACTS, check_method, check_plugin

TOY = str(Path(__file__).parent / "toy_plugin.py")


def refused(answer, *texts):
    assert (answer.code, answer.out) == (2, ""), answer
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1, answer.err
    assert all(text in answer.err for text in texts), answer.err


# Writing.


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "method"])  # that is installed below
def test_a_new_plugin_of_each_kind_keeps_the_contract_untouched(kind, mtlbench):
    written = mtlbench("plugin", "new", f"my-{kind}", "--kind", kind, "--file")
    assert written.code == 0, written.err
    assert f"mtlbench plugin check my_{kind}.py" in written.out
    answer = mtlbench("plugin", "check", f"my_{kind}.py")
    assert answer.code == 0, answer.out
    (heading,) = re.findall(r"^(\w.* my[-_]\w+)$", answer.out, re.MULTILINE)
    assert heading.startswith(kind)
    assert len(re.findall(r"^  passed ", answer.out, re.MULTILINE)) == len(CONTRACTS[f"{kind}s"])


def test_a_package_has_an_entry_point_a_module_a_test_and_a_readme(mtlbench, tmp_path):
    answer = mtlbench("plugin", "new", "my-method", "--kind", "method", "--output", "deep/down")
    assert answer.code == 0
    folder = tmp_path / "deep" / "down" / "my-method"
    names = {"pyproject.toml", "my_method.py", "test_my_method.py", "README.md"}
    assert {path.name for path in folder.iterdir()} == names
    assert all(name in answer.out for name in names)
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["mtlbench"] == {"my-method": "my_method"}
    assert project["tool"]["setuptools"]["py-modules"] == ["my_method"]
    assert len((folder / "my_method.py").read_text().splitlines()) <= 20
    assert "$" not in "".join(path.read_text() for path in folder.iterdir())


def test_what_is_written_is_as_tidy_as_our_own_code(tmp_path):
    for kind in KINDS:
        write_package(f"my-{kind}", kind, tmp_path)
    config = Path(__file__).parents[1] / "pyproject.toml"
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--no-cache", "--config", config, tmp_path],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_an_installed_package_is_listed_and_passes_its_own_test(tmp_path):
    folder, site = write_package("my-method", "method", tmp_path), tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", site, folder], check=True)
    code = (
        "import sys, pytest; from mtlprune_bench.commands import run_cli; "
        "sys.exit(run_cli(['ls', 'my-method']) or run_cli(['plugin', 'check', 'My_Method', '--only', 'plan']) "
        "or pytest.main(['-q', '-p', 'no:cacheprovider', 'test_my_method.py']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my-method (my-method 0.1.0)" in done.stdout
    assert "method my-method\n  passed    plan " in done.stdout
    assert "1 passed" in done.stdout


def test_a_new_method_shows_up_in_ls_and_in_table(mtlbench):
    assert mtlbench("plugin", "new", "my-method", "--kind", "method", "--file").code == 0
    plugins = ("--plugin", "my_method.py", "--plugin", TOY)
    assert "my-method" in mtlbench("ls", "methods", *plugins).out
    quick = ("--set", "train.steps=2", "--set", "method.score.batches=1")
    assert mtlbench("run", *plugins, "--method", "my-method", "--dataset", "toy", *quick).code == 0
    assert "| my-method" in mtlbench("table", "--format", "markdown").out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("My_Method", "'my-method' would do"),
        ("../up", "'up' would do"),
        ("a--b", "'a-b' would do"),
        ("-", "small letters"),
        ("3d", "no module '3d'"),
        ("lambda", "no module 'lambda'"),
        ("torch", "hide the module 'torch'"),
        ("json", "hide the module 'json'"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name, said, mtlbench, tmp_path):
    refused(mtlbench("plugin", "new", "--kind", "method", "--", name), said)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused(mtlbench, tmp_path):
    refused(mtlbench("plugin", "new", "snip", "--kind", "method"), "method or a plugin 'snip' already")
    refused(mtlbench("plugin", "new", "axes", "--kind", "observer"), "'axes' already")
    assert list(tmp_path.iterdir()) == []
    assert module_name("my-snip") == "my_snip"


@pytest.mark.parametrize("form", [[], ["--file"]])
def test_nothing_is_overwritten(form, mtlbench, tmp_path):
    assert mtlbench("plugin", "new", "brand-new", "--kind", "method", *form).code == 0
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    refused(
        mtlbench("plugin", "new", "brand-new", "--kind", "scorer", *form), "brand", "is there already", "--output"
    )
    assert before == {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_folder_that_cannot_be_written_is_said(mtlbench, tmp_path):
    (tmp_path / "file").write_text("")
    refused(mtlbench("plugin", "new", "brand-new", "--kind", "method", "--output", "file/x"), "cannot be written")


# Checking: faults planted in what was written, and the check that finds each.

SQUARE = "(scoring.weights[name].detach() * gradient) ** 2"
EVAL = "scoring.model.eval()\n"
STINGY = """@dataclass(frozen=True)
class Stingy:
    name: str = "stingy"

    def groups(self, shapes, kept):
        return (Group(tuple(shapes), kept - 1),)


@hookimpl"""
FORWARD = "self.trunk(images)"
VALID = "torch.ones(HEIGHT, WIDTH, dtype=torch.bool)"
HIDDEN = {
    "class Network": "import itertools\n\nCOUNT = itertools.count()\n\n\nclass Network",
    "super().__init__()": "super().__init__()\n        self.number = next(COUNT)",
    FORWARD: f"{FORWARD} + self.number",
}
"""A network that knows, beside its state, how many were built before it."""

FAULTS = [
    (
        "scorer",
        "trace",
        {EVAL: EVAL + " " * 12 + "next(iter(scoring.weights.values())).data.add_(1)\n"},
        "changes par",
    ),
    ("scorer", "trace", {"with untouched(scoring.model):": "if True:"}, "changes the training flag"),
    (
        "scorer",
        "trace",
        {SQUARE: "random.random()", "import torch\n": "import random, torch\n"},
        "Python's global",
    ),
    ("scorer", "seeds", {SQUARE: "torch.rand_like(gradient)"}, "gives other masks when a run is repeated"),
    ("scorer", "scores", {SQUARE: "gradient / scoring.weights[name].detach()"}, "not finite"),
    (
        "scorer",
        "order",
        {SQUARE: f"{SQUARE} * (1 + scoring.voters.index(voter))"},
        "the tasks are listed backwards",
    ),
    (
        "scorer",
        "order",
        {SQUARE: f"{SQUARE} + len(scores) * list(scores).index(voter.name)"},
        "other",
    ),
    ("scorer", "scale", {SQUARE: f"{SQUARE} + scoring.weights[name].detach() ** 2"}, "in other units.*scale_free"),
    ("scorer", "costs", {"self.batches * voters": "self.batches"}, "declares .* and makes"),
    ("scorer", "scores", {SQUARE: "gradient.missing"}, r"AttributeError: .*my_scorer.py, line \d+"),
    (
        "method",
        "groups",
        {"@hookimpl": STINGY, "start=": "allocation=Stingy(), start="},
        "shares out 1025 weights .* instead of 1026",
    ),
    ("method", "sparsity", {"@hookimpl": STINGY, "start=": "allocation=Stingy(), start="}, "SparsityError"),
    ("schedule", "plan", {"sparsity * step / last": "sparsity * (1 - step / last)"}, "prunes to .* which go back"),
    (
        "schedule",
        "sparsity",
        {"Update(last, sparsity)": "Update(last, sparsity + 0.001)"},
        r"keeps \d+ of 1026 weights",
    ),
    ("arbiter", "merging", {"ranks.mean(0)": "ranks[0]"}, "Let no task be special"),
    ("arbiter", "merging", {"ranks.mean(0)": "ranks.mul_(0.5).mean(0)"}, "changes the ranks"),
    ("arbiter", "merging", {"ranks.mean(0)": "ranks.mean(-1)"}, "Merge along the first dimension"),
    ("arbiter", "merging", {"ranks.mean(0)": "ranks.mean(0).log2().div(0)"}, "not finite"),
    ("arbiter", "merging", {"ranks.mean(0)": "ranks[0].clone().uniform_()"}, "others each time"),
    ("dataset", "opening", {'"discs-1"': '""'}, "has the fingerprint ''"),
    ("dataset", "opening", {'{"segmentation": 1.0, "depth": 1.0}': '{"depth": 1.0}'}, "has loss weights for"),
    ("dataset", "opening", {'Labels("depth", unit="m")': 'Labels("deepness")'}, "Unknown task 'deepness'"),
    ("dataset", "opening", {"Discs(2, 16)": "Discs(2, 0)"}, "no samples in test"),
    ("dataset", "samples", {"torch.rand(4, generator=generator)": "torch.rand(4)"}, "another image .* each time"),
    ("dataset", "samples", {"disc.long()": "3 * disc.long()"}, "outside of 0 to 1"),
    ("dataset", "samples", {"disc.long()": "disc.float()"}, "must be int64"),
    ("dataset", "samples", {"depth[None]": "depth[None] / 0"}, "not finite"),
    ("dataset", "samples", {"depth[None]": "depth[None, 1:]"}, "48 x 64 pixels"),
    ("dataset", "samples", {".to(torch.uint8)": ""}, "must be uint8"),
    ("dataset", "splits", {"Discs(2, 16)": "Discs(0, 16)"}, "has sample 0 of train in test too"),
    ("dataset", "learning", {VALID: VALID.replace("ones", "zeros")}, "nothing can be learned"),
    ("model", "outputs", {"nn.Conv2d(width, count, 1)": "nn.Conv2d(width, 2, 1)"}, r"must be \[2, 3, h, w\]"),
    ("model", "outputs", {FORWARD: "self.trunk(images - images.mean())"}, "another one is beside it"),
    ("model", "outputs", {"return {task: head(": "return {task + 's': head("}, "predicts .'ones'"),
    ("model", "weights", {"head(features) for": "0 * head(features) for"}, "no gradient in"),
    ("model", "state", HIDDEN, "after its state was loaded"),
    ("model", "scaling", {"settings.width * factor": "settings.width"}, "when it is scaled by 0.5"),
    (
        "observer",
        "inert",
        {"was = before.get(": "mask.fill_(False)\n        was = before.get("},
        "in masks_updated",
    ),
    ("observer", "inert", {"run.stage_folder": "run.missing"}, "AttributeError"),
    (
        "observer",
        "inert",
        {
            "@hookimpl": "@hookimpl\ndef run_finished(run):\n"
            "    (run.folder / 'masks.safetensors').write_text('')\n\n\n@hookimpl"
        },
        "changes the masks of a run",
    ),
]


@pytest.mark.parametrize(
    ("kind", "check", "edits", "said"), FAULTS, ids=[f"{n}-{f[0]}-{f[1]}" for n, f in enumerate(FAULTS)]
)
def test_a_planted_fault_is_found_and_said(kind, check, edits, said, mtlbench, tmp_path):
    path = write_file(f"my-{kind}", kind, tmp_path)
    code = path.read_text()
    for before, after in edits.items():
        assert before in code, before
        code = code.replace(before, after, 1)
    if "Stingy" in code:
        code = code.replace("import AT_INIT", "import Group, AT_INIT").replace(
            "\nfrom mtl", "\nfrom dataclasses import dataclass\nfrom mtl", 1
        )
    path.write_text(code)
    answer = mtlbench("plugin", "check", str(path), "--only", check)
    assert answer.code == 1, answer.out
    assert re.search(rf"^  FAILED    {check}\n      \w+ '[\w-]+' ", answer.out, re.MULTILINE), answer.out
    assert re.search(said, answer.out, re.DOTALL), answer.out
    assert "1 failed" in answer.out


def test_every_check_of_a_part_is_seen_to_fail():
    seen = {(f"{kind}s", check) for kind, check, _, _ in FAULTS}
    for kind in ("models", "datasets", "observers"):
        for check in CONTRACTS[kind]:
            assert (kind, check.__name__.removeprefix("check_")) in seen, (
                f"{check.__name__} is never shown to fail"
            )


# Targets, and what is printed.


def test_a_registered_name_a_plugin_and_a_module_are_targets(mtlbench, tmp_path, monkeypatch):
    assert "method snip\n  passed    plan " in mtlbench("plugin", "check", "snip", "--only", "plan").out
    both = mtlbench("plugin", "check", "magnitude", "--only", "check_trace").out
    assert re.findall(r"^(\w+ magnitude)$", both, re.MULTILINE) == ["scorer magnitude", "method magnitude"]
    assert "arbiter at-least:2" in mtlbench("plugin", "check", "at-least:2", "--only", "merging").out
    needs = mtlbench("plugin", "check", "axes", "--only", "groups").out
    assert "allocation uniform" in needs
    assert "needs q behind a colon" in needs
    monkeypatch.syspath_prepend(tmp_path)
    write_file("some-plugin", "scorer", tmp_path)
    assert "scorer some-plugin" in mtlbench("plugin", "check", "some_plugin", "--only", "scores").out
    assert check_plugin("some_plugin", only=["scores"])[0].passed


@pytest.mark.parametrize(
    ("target", "texts"),
    [
        ("snap", ["no registered name", "Did you mean 'snip'?"]),
        ("nothing.py", ["no plugin file nothing.py"]),
        ("local", ["registers only runners", "there are contracts for"]),
        ("json", ["registers nothing"]),
        ("folder", ["folder is a folder", "pip install -e folder"]),
    ],
)
def test_a_target_that_is_none_is_refused(target, texts, mtlbench, tmp_path):
    (tmp_path / "folder").mkdir()
    refused(mtlbench("plugin", "check", target), *texts)


def test_an_unknown_check_is_refused(mtlbench):
    refused(mtlbench("plugin", "check", "snip", "--only", "sparsty"), "Did you mean 'sparsity'?")


def test_a_plugin_that_does_not_load_is_said(mtlbench, tmp_path):
    (tmp_path / "broken.py").write_text("import nowhere\n")
    answer = mtlbench("plugin", "check", "broken.py")
    assert answer.code == 1
    assert answer.err.endswith("does not load: ModuleNotFoundError: No module named 'nowhere'.\n")


def test_settings_are_those_of_set(mtlbench):
    late = ("plugin", "check", "toy-late", "--plugin", TOY, "--only", "plan")
    refusal = mtlbench(*late)
    assert refusal.code == 1
    assert "training has 8 steps." in refusal.out
    assert mtlbench(*late, "--set", "train.steps=12").code == 0


def test_a_terminal_has_ticks(mtlbench, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "✓\x1b[0m plan " in mtlbench("plugin", "check", "snip", "--only", "plan").out


def test_verdicts_as_json(mtlbench):
    answer = mtlbench("plugin", "check", "snip", "--only", "plan", "--only", "scale", "--json")
    plan, scale = json.loads(answer.out)
    assert (plan["kind"], plan["name"], plan["check"], plan["passed"], plan["reason"]) == (
        "method",
        "snip",
        "plan",
        True,
        "",
    )
    assert (scale["passed"], scale["reason"]) == (None, "it does not claim this")


def test_the_same_from_python(tmp_path):
    assert {verdict.passed for verdict in check_method("random", only=["plan", "scores"])} == {True}
    path = write_file("brand-new", "scorer", tmp_path)
    path.write_text(path.read_text().replace("scale_free = True", "scale_free = False").replace("** 2", "/ 0"))
    with pytest.raises(AssertionError, match=r"(?s)Scorer 'brand-new' .*not finite.*\n\nScorer 'brand-new' "):
        check_plugin(str(path), only=["scores", "sparsity", "scale"])
