"""Suite files: the cells that they ask for, what wins where two parts differ, and what is refused."""

import dataclasses
import functools
import re
from itertools import product
from pathlib import Path

import pytest

from mtlprune_bench.commands import run_cli
from mtlprune_bench.errors import UsageError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.costs import parts
from mtlprune_bench.runs.grid import read_run, read_suite, run_requests
from mtlprune_bench.runs.jobs import graph
from mtlprune_bench.runs.request import merge_settings
from mtlprune_bench.runs.suite import prepare_all

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "suites.md").read_text()
SUITES = dict(re.findall(r"^\| \[([\w-]+)\.toml\].*\| (\d+) \|$", DOCUMENT, re.MULTILINE))


@pytest.fixture
def suite(tmp_path):
    """Return a function that reads a suite from text."""

    def read(text):
        path = tmp_path / "suite.toml"
        path.write_text(text)
        return read_suite(path)

    return read


@pytest.fixture(scope="module")
def registry():
    return load_registry()


# Cells


def test_a_grid_has_a_cell_for_every_combination_of_its_lists(suite):
    text = """
        [run]
        dataset = ["a", "b"]
        model = ["m", "n"]
        protocol = ["standard", "disparse"]
        sparsity = [0.5, 0.9]
        seeds = [3, 0]
        [[grid]]
        method = ["one", "two"]
        vary."method.arbiter" = ["or", "and"]
        vary."train.lr" = [1e-3, 1e-4, 1e-5]
    """
    found = [
        (
            *(request.dataset, request.model, request.protocol, request.sparsity, request.method),
            *(request.settings["method"]["arbiter"], request.settings["train"]["lr"], request.seed),
        )
        for request in suite(text).requests
    ]
    axes = (["a", "b"], ["m", "n"], ["standard", "disparse"], [0.5, 0.9], ["one", "two"], ["or", "and"])
    assert found == list(product(*axes, [1e-3, 1e-4, 1e-5], [3, 0]))


def test_a_grid_takes_from_run_what_it_does_not_say_itself(suite):
    text = """
        title = "T"
        description = "D"
        [run]
        method = "one"
        dataset = "a"
        model = "m"
        sparsity = "0.5, 0.7"
        seeds = 2
        protocol = "disparse"
        [[grid]]
        [[grid]]
        method = "two, three"
        dataset = "b"
        model = "n"
        sparsity = 0.9
        seeds = [7]
        protocol = "standard"
    """
    found = suite(text)
    assert (found.title, found.description) == ("T", "D")
    cells = [(r.method, r.dataset, r.model, r.sparsity, r.seed, r.protocol) for r in found.requests]
    assert cells == [
        *(("one", "a", "m", sparsity, seed, "disparse") for sparsity in (0.5, 0.7) for seed in (0, 1)),
        ("two", "b", "n", 0.9, 7, "standard"),
        ("three", "b", "n", 0.9, 7, "standard"),
    ]


def test_what_no_part_says_is_as_in_a_run(suite, tmp_path):
    text = '[run]\nmethod = "one"\ndataset = "a"\n'
    (request,) = suite(text).requests
    assert [request] == run_requests(*read_run(tmp_path / "suite.toml"))
    assert (request.model, request.sparsity, request.seed, request.protocol) == (None, 0.9, 0, "standard")


def test_every_run_file_is_a_suite_of_the_same_runs():
    path = ROOT / "benchmarks" / "methods.toml"
    asked = read_suite(path)
    assert list(asked.requests) == run_requests(*read_run(path))
    assert len(asked.requests) == 17 * 4 * 3
    settings = {"train": {"steps": 200, "lr_decay_every": 75}, "finetune": {"steps": 50}}
    assert all(request.settings == settings for request in asked.requests)


PRECEDENCE = """
    [run]
    dataset = "a"
    [train]
    steps = 1
    batch = 1
    [method]
    one = "section"
    two = "section"
    three = "section"
    four = "section"
    [methods.snip]
    two = "method"
    three = "method"
    four = "method"
    [methods.other]
    two = "other"
    [[grid]]
    method = ["snip", "other"]
    settings.train.steps = 2
    settings.method.three = "grid"
    settings.method.four = "grid"
    vary."method.four" = ["varied"]
"""


def test_sections_then_methods_then_the_grids_settings_then_what_is_varied(suite):
    snip, other = suite(PRECEDENCE).requests
    assert snip.settings == {
        "train": {"steps": 2, "batch": 1},
        "method": {"one": "section", "two": "method", "three": "grid", "four": "varied"},
    }
    assert other.settings["method"] == {"one": "section", "two": "other", "three": "grid", "four": "varied"}


def test_a_name_and_settings_of_one_axis_are_kept_together(suite):
    text = """
        [run]
        method = "snip"
        dataset = "a"
        [methods]
        snip.score.batches = 5
        [[grid]]
        vary."method.score" = ["gradient", { name = "saliency", batches = 7 }]
    """
    assert [request.settings["method"]["score"] for request in suite(text).requests] == [
        {"batches": 5, "name": "gradient"},
        {"batches": 7, "name": "saliency"},
    ]


def test_a_dotted_name_means_the_same_with_quotes_and_without(suite):
    quoted = """
        [run]
        method = "snip"
        dataset = "a"
        [methods.snip]
        "score.batches" = 5
        [[grid]]
        [grid.settings]
        "method.score.mode" = "eval"
        [grid.vary]
        "method.arbiter" = ["or", "and", "majority"]
        [[exclude]]
        "method.arbiter" = "and"
    """
    bare = re.sub(r'"([a-z.]+)" =', r"\1 =", quoted)
    assert bare != quoted
    assert suite(bare) == suite(quoted)
    settings = {"score": {"batches": 5, "mode": "eval"}}
    assert [request.settings["method"] for request in suite(bare).requests] == [
        {**settings, "arbiter": "or"},
        {**settings, "arbiter": "majority"},
    ]


def test_what_matches_all_keys_of_an_exclude_is_left_out_of_every_grid(suite):
    text = """
        [run]
        dataset = ["a", "b"]
        sparsity = [0.5, 0.9]
        [[grid]]
        method = ["one", "two"]
        seeds = 2
        [[grid]]
        method = "three"
        vary."method.arbiter" = ["or", "and"]
        [[exclude]]
        method = ["one", "three"]
        sparsity = 0.5
        dataset = "a"
        [[exclude]]
        seed = 1
        method = "two"
        [[exclude]]
        "method.arbiter" = ["and"]
    """
    kept = {(r.method, r.dataset, r.sparsity, r.seed) for r in suite(text).requests}
    everything = set(product(("one", "two"), "ab", (0.5, 0.9), (0, 1))) | set(
        product(("three",), "ab", (0.5, 0.9), (0,))
    )
    gone = {cell for cell in everything if cell[0] != "two" and cell[1:3] == ("a", 0.5)}
    gone |= {cell for cell in everything if cell[0] == "two" and cell[3] == 1}
    assert kept == everything - gone
    assert {r.settings["method"]["arbiter"] for r in suite(text).requests if r.method == "three"} == {"or"}


# What is refused

HEAD = '[run]\nmethod = ["snip", "rigl"]\ndataset = "toy"\n'
BAD = [
    ("[[grid]\n", ["is not valid TOML", "line 1"]),
    ("", ["grid 1 has no method; name it there or in [run]."]),
    ("[run]\nmethod = 'snip'\n", ["grid 1 has no dataset"]),
    ("[[gird]]\n" + HEAD, ["Unknown key in a suite 'gird'. Did you mean 'grid'?", "train"]),
    ("titel = 'x'\n" + HEAD, ["Unknown key in a suite 'titel'. Did you mean 'title'?"]),
    ("title = 3\n" + HEAD, ["title is 3; it must be a text"]),
    ("train = 3\n" + HEAD, ["'train' is a section; write [train] above its keys, not train = 3."]),
    ("run = 3\n", ["'run' is a section; write [run]"]),
    ("methods = 'snip'\n" + HEAD, ["'methods' is a section; write [methods.NAME]"]),
    ("grid = 3\n" + HEAD, ["There may be several of 'grid'; write [[grid]], with two brackets"]),
    (HEAD + "[grid]\nsparsity = 0.5\n", ["There may be several of 'grid'; write [[grid]]"]),
    (HEAD + "[exclude]\nsparsity = 0.5\n", ["There may be several of 'exclude'; write [[exclude]]"]),
    (HEAD + "[[grid]]\nmethd = 'x'\n", ["Unknown key in grid 1 'methd'. Did you mean 'method'?"]),
    (HEAD + "[[grid]]\n[[grid]]\nseed = 3\n", ["Unknown key in grid 2 'seed'. Did you mean 'seeds'?"]),
    (HEAD + "sparsty = 3\n", ["Unknown key in [run] 'sparsty'. Did you mean 'sparsity'?"]),
    (HEAD + "sparsity = []\n", ["sparsity in grid 1 is empty"]),
    (HEAD + "sparsity = ['x']\n", ["is no list of numbers"]),
    (HEAD + "model = []\n", ["model in grid 1 is empty"]),
    (
        HEAD + "model = ['a', 3]\n",
        ["model in grid 1 is ['a', 3]; it must be a name in quotes, or a list of names."],
    ),
    (HEAD + "[[grid]]\nmethod = []\n", ["method in grid 1 is empty"]),
    (HEAD + "[[grid]]\nmethod = ''\n", ["method in grid 1 is empty"]),
    (HEAD + "[[grid]]\nmethod = 3\n", ["method in grid 1 is 3"]),
    (HEAD + "seeds = 0\n", ["seeds in grid 1 are 0; give their number, 1 or more, or a list of them."]),
    (HEAD + "seeds = []\n", ["seeds in grid 1 are []"]),
    (HEAD + "seeds = [0, -1]\n", ["seeds in grid 1 are [0, -1]"]),
    (HEAD + "seeds = [true]\n", ["seeds in grid 1 are [True]"]),
    (HEAD + "seeds = 1.5\n", ["seeds in grid 1 are 1.5"]),
    (
        HEAD + "[methods.snp]\nrounds = 3\n",
        ["Unknown method in [methods] 'snp'. Did you mean 'snip'? Known: rigl, snip."],
    ),
    (HEAD + "[methods]\nsnip = 3\n", ["'snip' is a section; write [methods.snip]"]),
    (HEAD + "[[grid]]\nsettings = 3\n", ["'settings' is a section; write [grid.settings]"]),
    (HEAD + "[[grid]]\nsettings.trian.steps = 3\n", ["section of settings in grid 1 'trian'", "mean 'train'?"]),
    (HEAD + "[[grid]]\nsettings.train = 3\n", ["'train' in grid 1 is a section of settings; write train.NAME."]),
    (
        HEAD + "[[grid]]\nsettings.engine.workers = 3\n",
        ["engine.workers in grid 1 is for the whole", "under [engine]"],
    ),
    (HEAD + "[[grid]]\nvary = ['or']\n", ["'vary' is a section; write [grid.vary]"]),
    (HEAD + "[[grid]]\nvary.method.arbiter = 'or'\n", ["method.arbiter in vary of grid 1 is 'or'", "a list"]),
    (HEAD + "[[grid]]\nvary.method.arbiter = []\n", ["method.arbiter in vary of grid 1 is []"]),
    (HEAD + "[[grid]]\nvary.arbiter = ['or']\n", ["section of settings in grid 1 'arbiter'"]),
    (HEAD + "[[grid]]\nvary.engine.workers = [1]\n", ["engine.workers in grid 1 is for the whole suite"]),
    (HEAD + "[[exclude]]\n", ["exclude 1 has no keys"]),
    (HEAD + "[[exclude]]\nmethd = 'x'\n", ["Unknown key in exclude 1 'methd'. Did you mean 'method'?"]),
    (HEAD + "[[exclude]]\nmethod.arbiter = 'or'\n", ["Unknown key in exclude 1 'method.arbiter'"]),
    (HEAD + "[[exclude]]\nmethod = 'snp'\n", ["exclude 1 leaves out no cell with method = 'snp'"]),
    (HEAD + "[[exclude]]\nmethod = ['snip', 'snp']\n", ["exclude 1 leaves out no cell with method = 'snp'"]),
    (HEAD + "[[exclude]]\nmethod = 'snip'\nseed = 1\n", ["exclude 1 leaves out no cell with"]),
    (HEAD + "[[exclude]]\nseed = 'x'\n", ["seeds in exclude 1 are ['x']"]),
    (HEAD + "[[exclude]]\ndataset = 'toy'\n", ["grid 1 is empty: every cell of it is excluded."]),
    (HEAD + "[[grid]]\n[[grid]]\nmethod = 'x'\n[[exclude]]\nmethod = 'x'\n", ["grid 2 is empty"]),
    (HEAD + "sparsity = [0.5, 0.5]\n", ["cell snip, toy, 0.5, seed 0 is in grid 1 twice"]),
    (
        HEAD + "seeds = 2\n[[grid]]\n[[grid]]\nmethod = 'rigl'\nseeds = [1]\n",
        ["cell rigl, toy, 0.9, seed 1 is in grid 1 and grid 2; remove one of them."],
    ),
    (
        HEAD + "model = 'm'\n[[grid]]\nvary.method.arbiter = ['or', 'and', 'or']\n",
        ["cell snip, toy, m, 0.9, method.arbiter = or, seed 0 is in grid 1 twice"],
    ),
]


@pytest.mark.parametrize(("text", "texts"), BAD)
def test_a_bad_suite_is_refused_with_its_file_and_the_place_in_it(suite, tmp_path, text, texts):
    with pytest.raises(UsageError) as refusal:
        suite(text)
    message = str(refusal.value)
    assert message.startswith(str(tmp_path / "suite.toml"))
    assert all(part in message for part in texts), message
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"Cannot read .*missing.toml: No such file"):
        read_suite(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match=r"Cannot read .*: Is a directory"):
        read_suite(tmp_path)


@pytest.mark.parametrize("line", ["title = 'x'", "description = 'x'", "[methods.snip]", "[[grid]]", "[[exclude]]"])
def test_run_takes_no_suite_and_says_what_does(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(f"{line}\n[run]\nmethod = 'snip'\ndataset = 'toy'\n")
    assert run_cli(["run", "--config", "study.toml"]) == 2
    assert capsys.readouterr() == ("", "Error: study.toml is a suite: mtlbench suite run study.toml\n")


# The suites that come with the project


@pytest.fixture(scope="module")
def prepared(registry):
    """Return a function: requests and experiments of a suite's first seed, real data or not, and what is said."""
    anywhere = {"data": {"require_real": False}}

    @functools.cache
    def prepare(name):
        requests = [
            dataclasses.replace(request, settings=merge_settings(request.settings, anywhere))
            for request in read_suite(ROOT / "benchmarks" / f"{name}.toml").requests
            if request.seed == 0
        ]
        notes = []
        return requests, prepare_all(requests, registry, notes.append), notes

    return prepare


def test_the_documented_example_is_a_suite_of_as_many_cells_as_it_says(suite):
    text = re.search(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)[1]
    assert len(suite(text).requests) == 3 * 2 * 3 + 2 * 3 * 2 * 3 - 3


def test_every_suite_is_documented_with_its_number_of_cells():
    suites = {path.stem: read_suite(path) for path in (ROOT / "benchmarks").glob("*.toml")}
    assert set(SUITES) == {name for name, asked in suites.items() if asked.title and asked.description}
    assert {name: len(suites[name].requests) for name in SUITES} == {name: int(n) for name, n in SUITES.items()}


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_can_be_run_and_nothing_in_it_is_what_nobody_means(name, prepared):
    requests, experiments, notes = prepared(name)
    assert len(notes) == 1
    assert notes[0].startswith("STAND-IN DATA")
    assert len({experiment.config.run_id for experiment in experiments}) == len(requests), "each cell is a run"


DISPARSE = {
    *("lth", "snip", "random", "disparse-static"),
    *("rigl", "disparse-dynamic"),
    *("imp", "random-pretrained", "disparse-pretrained"),
}
"""The nine sparse rows of tables 1 to 3."""


@pytest.mark.parametrize(("name", "classes"), [("nyuv2", 40), ("cityscapes", 19), ("taskonomy", 17)])
def test_the_tables_of_disparse_have_ten_rows_at_four_sparsities(registry, name, classes):
    asked = read_suite(ROOT / "benchmarks" / f"{name}.toml")
    cells = [(r.method, r.sparsity) for r in asked.requests if r.method != "dense" and r.seed == 0]
    assert sorted(cells) == sorted(product(DISPARSE, (0.3, 0.5, 0.7, 0.9)))
    assert [r.seed for r in asked.requests if r.method == "dense"] == [0, 1, 2]
    assert {(r.dataset, r.protocol) for r in asked.requests} == {(name, "disparse")}
    assert all(request.settings["data"]["require_real"] is True for request in asked.requests)
    labels = registry.get("datasets", name).labels
    assert next(label.classes for label in labels if label.task == "segmentation") == classes


def test_the_table_of_adapmtl_has_seven_rows_on_each_of_two_networks():
    asked = read_suite(ROOT / "benchmarks" / "adapmtl-nyuv2.toml")
    rows = {"dense", "snip", "lth", "imp", "disparse-dynamic", "adapmtl-single-threshold", "adapmtl"}
    cells = {(r.model, r.method) for r in asked.requests}
    assert cells == set(product(("timm:mobilenetv2_100", "deeplab-resnet34"), rows))
    assert {(r.dataset, r.sparsity) for r in asked.requests} == {("nyuv2-3task", 0.9)}


def test_arbiters_are_compared_as_in_table_4_and_under_every_scorer(prepared, registry):
    requests, experiments, _ = prepared("ablation-arbiters")
    arbiters = {"or", "majority", "and"}
    cells = {(r.method, r.settings["method"]["arbiter"]) for r in requests if r.method != "dense"}
    assert set(product(("disparse-static", "disparse-dynamic"), arbiters)) <= cells
    methods = [experiment.config.method for experiment in experiments if experiment.config.method.prunes]
    assert {method.scope for method in methods} == {"per-task"}
    scorers = {entry.name for entry in registry.of_kind("scorers")}
    assert {(m.score.name, m.arbiter.name) for m in methods} == set(product(scorers, arbiters))
    assert len(experiments[0].objective.tasks) == 5


def test_quick_has_every_method_and_shares_so_much_that_half_of_the_steps_are_left(prepared, registry):
    _, experiments, _ = prepared("quick")
    assert {e.config.method.name for e in experiments} == {entry.name for entry in registry.of_kind("methods")}
    apart = sum(part.cost.steps for experiment in experiments for part in parts(experiment))
    shared = sum(job.cost.steps for job in graph(experiments))
    assert shared <= 0.55 * apart, f"{shared} of {apart} steps"
    trained = [e for e in experiments if e.config.method.budget == "finetune"]
    assert {e.config.sparsity for e in trained} == {0.3, 0.5, 0.7, 0.9}
