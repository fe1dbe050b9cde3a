"""The command line: what it prints, what it refuses, and that a problem is one line without a traceback."""

import csv
import io
import re
from pathlib import Path

import pytest

from mtlprune_bench.commands import run_cli
from mtlprune_bench.commands.table import FORMATS
from mtlprune_bench.store import Store, read_history, read_rows

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
TOY = ("--plugin", PLUGIN, "--dataset", "toy")
QUICK = ("--set", "train.steps=2", "--set", "finetune.steps=2")


def refused(answer, *texts, code=2):
    """Assert that an answer is one line on stderr with these texts, and nothing else."""
    assert answer.code == code, answer
    assert answer.out == ""
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1, answer.err
    assert answer.err.endswith("\n")
    assert "Traceback" not in answer.err
    assert "bug" not in answer.err
    assert all(text in answer.err for text in texts), answer.err


def write(path, text):
    path.write_text(text)
    return str(path)


# Running and looking at results


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store with two methods at two sparsities with two seeds, made by one command."""
    folder = tmp_path_factory.mktemp("store")
    options = ("--method", "random,snip", "--sparsity", "0.5,0.9", "--seeds", "2", "--store", str(folder))
    assert run_cli(["run", *TOY, *options, *QUICK]) == 0
    return folder


def test_one_command_runs_all_methods_sparsities_and_seeds_and_prints_their_table(mtlbench, store):
    options = ("--method", "random", "--method", "snip", "--sparsity", "0.5,0.9", "--seeds", "2", *QUICK)
    answer = mtlbench("run", *TOY, *options, "--store", str(store))
    assert answer.code == 0
    assert len(Store(store).runs()) == 8, "nothing was run again"
    assert re.findall(r"^(\w+)-toy-(\S+)-s(\d)-\w+ finished$", answer.err, re.MULTILINE) == [
        (method, sparsity, seed) for sparsity in ("0.5", "0.9") for method in ("random", "snip") for seed in "01"
    ]
    assert "toy: generated patches; model toy-net; protocol standard; 2 steps" in answer.out
    for method, asked in (("random", "50"), ("snip", "50"), ("random", "90"), ("snip", "90")):
        assert re.search(rf"│ {method} +│ +{asked} │ +no │ +2 │", answer.out)
    assert "Mean ± sample standard deviation over seeds." in answer.out
    assert "mean_iou" in answer.out
    assert "normals" in answer.out


def test_a_method_that_does_not_prune_has_one_run_for_all_sparsities(mtlbench, tmp_path):
    assert mtlbench("run", *TOY, "--method", "dense", "--sparsity", "0.5,0.9", *QUICK).code == 0
    (folder,) = Store(tmp_path / "runs").runs()
    assert folder.name.startswith("dense-toy-0-s0-")


def test_a_run_that_fails_is_told_of_and_the_others_finish(mtlbench, tmp_path):
    plugin = write(
        tmp_path / "broken.py",
        "from dataclasses import dataclass\nfrom mtlprune_bench import Method, hookimpl, once\n\n\n"
        "@dataclass(frozen=True)\nclass Broken:\n    name: str = 'broken'\n\n"
        "    def passes(self, voters):\n        return 0, 0\n\n"
        "    def __call__(self, scoring):\n        raise RuntimeError('no scores\\n  today')\n\n\n"
        "@hookimpl\ndef register_methods(register):\n"
        "    register(Method(name='broken', score=Broken(), schedule=once()))\n",
    )
    answer = mtlbench("run", *TOY, "--plugin", plugin, "--method", "broken,random", *QUICK)
    assert answer.code == 1
    assert re.search(r"^broken-\S+ failed: RuntimeError: no scores today$", answer.err, re.MULTILINE)
    assert re.search(r"^broken-\S+ failed: RuntimeError: no scores today$", answer.out, re.MULTILINE)
    assert "│ random" in answer.out
    assert "Traceback" not in answer.err + answer.out
    assert "no scores today" in mtlbench("show", "broken").out


@pytest.mark.parametrize("style", FORMATS)
def test_a_table_is_printed_or_written_in_every_format(mtlbench, tmp_path, store, style):
    printed = mtlbench("table", "--format", style, "--store", str(store))
    assert (printed.code, printed.err) == (0, "")
    written = mtlbench("table", "--format", style, "--store", str(store), "--output", "made/table")
    assert (written.code, written.out, written.err) == (0, "", "Wrote made/table.\n")
    assert (tmp_path / "made" / "table").read_text() == printed.out
    mark = {"terminal": "╭", "markdown": "|---", "csv": "dataset,data,", "latex": r"\toprule", "html": "<table>"}
    mark["json"] = '"setting"'
    assert mark[style] in printed.out


def test_the_table_as_csv_is_what_the_rows_hold(mtlbench, store):
    answer = mtlbench("table", "--format", "csv", "--store", str(store))
    table = {(row["method"], row["sparsity"]): row for row in csv.DictReader(io.StringIO(answer.out))}
    assert set(table) == {(method, sparsity) for method in ("random", "snip") for sparsity in ("0.5", "0.9")}
    values = [
        row["value"]
        for folder in Store(store).folder.glob("snip-toy-0.9-s*")
        for row in read_rows(folder)
        if row["metric"] == "mean_iou"
    ]
    assert len(values) == 2
    title = next(name for name in table["snip", "0.9"] if "mean_iou" in name and name.endswith("mean"))
    assert float(table["snip", "0.9"][title]) == pytest.approx(sum(values) / 2)
    assert table["snip", "0.9"]["stand_in"] == "False"


def test_a_run_is_shown_by_the_beginning_of_its_id(mtlbench, store):
    answer = mtlbench("show", "snip-toy-0.9-s1", "--store", str(store))
    assert answer.code == 0
    assert re.match(r"snip-toy-0.9-s1-\w+ finished\n", answer.out)
    for text in (
        "updates of the masks",
        "│ 0 ",
        "weights.safetensors",
        "rows.parquet",
        "│ mean_iou",
        "│ packages",
    ):
        assert text in answer.out, text


def test_a_plan_counts_stages_steps_and_passes_and_runs_nothing(mtlbench, tmp_path):
    options = ("--method", "disparse-static", "--sparsity", "0.75", "--set", "method.score.batches=3")
    answer = mtlbench("plan", *TOY, *options)
    assert answer.code == 0
    assert answer.out.startswith("disparse-static-toy-0.75-s0-")
    # Two tasks vote on 3 batches: 3 shared forward passes and 6 backward; then 30 steps of training.
    assert re.search(r"│ masks before training +│ 0 +│ 3 +│ 6 +│ 2 voters, arbiter or", answer.out)
    assert re.search(r"│ train +│ 30 +│ 30 +│ 30 +│ from init weights", answer.out)
    assert re.search(r"│ total +│ 30 +│ 33 +│ 36 ", answer.out)
    assert re.search(r"updates of the masks\n.*\n.*\n.*\n│ 0 +│ 0.75 +│ 0.25 +│", answer.out)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_knows_what_is_done(mtlbench):
    assert mtlbench("run", *TOY, "--method", "toy-finetune", *QUICK).code == 0
    fresh = mtlbench("plan", *TOY, "--method", "toy-lottery", *QUICK).out
    assert re.search(r"│ dense training +│ 2 +│ 2 +│ 2 +│ shared", fresh)
    assert re.search(r"│ total +│ 4 +│ 4 +│ 4 +│ done: dense training +│", fresh)
    done = mtlbench("plan", *TOY, "--method", "toy-finetune", *QUICK).out
    assert re.search(r"│ finetune +│ 2 +│ 2 +│ 2 +│ from trained", done)
    assert re.search(r"│ done: dense training, all of it +│", done)


AXES = [
    ("score", "magnitude"),
    ("scope", "joint"),
    ("arbiter", "majority"),
    ("allocation", "erk"),
    ("schedule", "never"),
]


@pytest.mark.parametrize(("axis", "choice"), AXES)
def test_an_axis_changes_the_method_and_is_part_of_its_label(mtlbench, axis, choice):
    few = () if axis == "score" else ("--set", "method.score.batches=1")
    answer = mtlbench("run", *TOY, "--method", "disparse-static", f"--{axis}", choice, *few, *QUICK)
    assert answer.code == 0, answer.err
    assert re.search(rf"│ disparse-static \([^)]*{axis}={choice}[^)]*\)", answer.out)


# Listing


KINDS = (
    ("methods", "disparse-static"),
    ("datasets", "nyuv2"),
    ("models", "toy-net"),
    ("tasks", "normals"),
    ("metrics", "segmentation.mean_iou"),
    ("scorers", "saliency"),
    ("arbiters", "majority"),
    ("schedules", "once"),
    ("allocations", "erk"),
    ("runners", "local"),
    ("plugins", "toy_plugin"),
    ("protocols", "disparse"),
    ("settings", "data.require_real"),
)


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_every_kind_is_listed(mtlbench, kind, name):
    answer = mtlbench("ls", kind, "--plugin", PLUGIN)
    assert (answer.code, answer.err) == (0, "")
    assert name in answer.out


def test_without_a_kind_all_are_listed_with_where_they_come_from(mtlbench):
    answer = mtlbench("ls", "--plugin", PLUGIN)
    assert re.search(r"│ toy-net +│ two convolutions and a head a task +│ \S+toy_plugin.py +│", answer.out)
    assert re.search(r"│ snip .*│ built in +│", answer.out)


def test_a_method_is_listed_with_settings_defaults_and_sources(mtlbench):
    answer = mtlbench("ls", "disparse-static")
    assert re.search(r"│ method.score.batches +│ 50 +│ .*│ DiSparse, section 4.4", answer.out)
    assert re.search(r"│ method.allocation +│ global +│ .*│ default of every method", answer.out)
    assert re.search(r"│ variant release +│", answer.out)
    assert "https://arxiv.org/abs/2206.04662" in answer.out


def test_a_dataset_and_a_model_are_listed_with_their_settings(mtlbench):
    dataset = mtlbench("ls", "toy", "--plugin", PLUGIN).out
    assert re.search(r"│ train.steps +│ 30 +│", dataset)
    assert re.search(r"│ finetune.steps +│ 8 +│", dataset)
    assert re.search(r"│ segmentation +│ 5 +│", dataset)
    assert re.search(r"│ model.width +│ 16 +│", mtlbench("ls", "toy-net", "--plugin", PLUGIN).out)


def test_what_is_listed_must_exist(mtlbench):
    refused(mtlbench("ls", "methds"), "Unknown kind or name 'methds'. Did you mean 'methods'?")
    refused(mtlbench("ls", "dispars-static"), "Did you mean 'disparse-static'?")


# Plugins


GREETING = """
import click
from mtlprune_bench import hookimpl

@click.command("greet", help="Say hello.")
@click.argument("name")
def greet(name):
    click.echo(f"hello {name}")

@hookimpl
def register_commands(register):
    register(greet)
"""


def test_a_plugins_command_is_in_the_help_and_runs(mtlbench, tmp_path, monkeypatch):
    plugin = write(tmp_path / "greeting.py", GREETING)
    assert mtlbench("--plugin", plugin, "greet", "world") == (0, "hello world\n", "")
    monkeypatch.setenv("MTLBENCH_PLUGINS", plugin)
    assert re.search(r"^  greet +Say hello.$", mtlbench("--help").out, re.MULTILINE)
    assert mtlbench("greet", "you").out == "hello you\n"
    refused(mtlbench("gret", "you"), "Unknown command 'gret'. Did you mean 'greet'?")
    assert re.search(r"│ greet +│ Say hello.", mtlbench("ls", "commands").out)


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_a_plugin_may_be_named_in_three_places(mtlbench, monkeypatch, place):
    named = ("--plugin", PLUGIN)
    if place == "environment":
        monkeypatch.setenv("MTLBENCH_PLUGINS", PLUGIN)
    before, after = (named if place == side else () for side in ("before", "after"))
    assert "toy-net" in mtlbench(*before, "ls", "models", *after).out
    monkeypatch.delenv("MTLBENCH_PLUGINS", raising=False)
    assert "toy-net" not in mtlbench("ls", "models").out


def test_a_blocked_plugin_is_not_there(mtlbench):
    answer = mtlbench("ls", "methods", "--block", "methods.snip", "--plugin", PLUGIN, "--block", "toy_plugin")
    assert answer.code == 0
    assert "disparse-static" in answer.out
    assert "snip" not in answer.out
    assert "toy" not in answer.out
    refused(mtlbench("ls", "--block", "methods.snop"), "plugin to block 'methods.snop'", "'methods.snip'?")


def test_a_plugin_that_does_not_load_is_warned_of_with_its_traceback_and_the_others_work(mtlbench, tmp_path):
    plugin = write(tmp_path / "broken.py", "import this_module_does_not_exist\n")
    answer = mtlbench("ls", "methods", "--plugin", plugin, "--plugin", PLUGIN)
    assert answer.code == 0
    assert answer.err.startswith(f"Warning: plugin 'broken' ({plugin}) could not be loaded: ModuleNotFoundError")
    assert "Traceback (most recent call last)" in answer.err
    assert f'File "{plugin}", line 1' in answer.err
    assert "toy-finetune" in answer.out
    assert "failed: ModuleNotFoundError" in mtlbench("ls", "plugins", "--plugin", plugin).out


def test_a_plugin_that_breaks_the_contract_is_an_error(mtlbench, tmp_path):
    head = "from mtlprune_bench import Method, hookimpl, never\n\n\n@hookimpl\n"
    double = head + "def register_methods(register):\n    register(Method(name='snip', schedule=never()))\n"
    plugin = write(tmp_path / "double.py", double)
    answer = mtlbench("ls", "methods", "--plugin", plugin)
    refused(answer, "'double'", "registers 'snip' among the methods", "plugin 'methods.snip'", code=1)
    plugin = write(tmp_path / "misspelt.py", head + "def register_method(register):\n    pass\n")
    refused(mtlbench("ls", "--plugin", plugin), "register_method", "Known hooks: ", "register_methods", code=1)
    plugin = write(tmp_path / "argument.py", head + "def step_finished(run, stp):\n    pass\n")
    refused(mtlbench("ls", "--plugin", plugin), "stp", code=1)


@pytest.mark.parametrize("plugin", ["missing.py", "no_such_module", "no.such.module"])
def test_a_plugin_must_exist(mtlbench, plugin):
    refused(mtlbench("ls", "--plugin", plugin), plugin)


# Settings


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(mtlbench, tmp_path):
    config = write(
        tmp_path / "config.toml",
        '[run]\nmethod = ["snip", "random"]\ndataset = "toy"\nsparsity = [0.5, 0.75]\nseeds = 2\n\n'
        "[train]\nsteps = 3\nbatch = 2\n\n[method]\nallocation = 'erk'\n",
    )
    plain = mtlbench("plan", "--plugin", PLUGIN, "--config", config)
    assert re.findall(r"^(\w+)-toy-(\S+)-s(\d)-", plain.out, re.MULTILINE) == [
        (method, sparsity, seed) for sparsity in ("0.5", "0.75") for method in ("snip", "random") for seed in "01"
    ]
    options = ("--method", "snip", "--sparsity", "0.9", "--seeds", "1", "--set", "train.steps=2")
    answer = mtlbench("run", "--plugin", PLUGIN, "--config", config, *options)
    assert answer.code == 0
    assert "2 steps, batch 2, crop 16" in answer.out
    assert re.search(r"│ snip \(allocation=erk\) +│ +90 │ +no │ +1 │", answer.out)
    assert "random" not in answer.out


@pytest.mark.parametrize("text", ["sparsity = 0.5", 'sparsity = "0.5"', "sparsity = [0.5]"])
def test_sparsity_in_a_file_may_be_a_number_a_text_or_a_list(mtlbench, tmp_path, text):
    config = write(tmp_path / "config.toml", f"[run]\n{text}\n")
    assert mtlbench("plan", *TOY, "--method", "snip", "--config", config).out.startswith("snip-toy-0.5-s0-")


BAD_FILES = [
    ("[run\n", ["is not valid TOML", "line 1"]),
    ("[run]\nmethd = 'snip'\n", ["Unknown key in [run] 'methd'. Did you mean 'method'?"]),
    ("[run]\nmethod = 5\n", ["method in [run] is 5"]),
    ("[run]\nmethod = ['snip', 5]\n", ["method in [run] is ['snip', 5]"]),
    ("[run]\ndataset = 5\n", ["dataset in [run] is 5"]),
    ("[run]\nmodel = ['toy-net']\n", ["model in [run] is ['toy-net']"]),
    ("[run]\nprotocol = true\n", ["protocol in [run] is True"]),
    ("[run]\nprotocol = 'dispars'\n", ["Unknown protocol 'dispars'. Did you mean 'disparse'?"]),
    ("[run]\nseeds = 0\n", ["Seeds are 0"]),
    ("[run]\nseeds = 1.5\n", ["Seeds are 1.5"]),
    ("[run]\nseeds = true\n", ["Seeds are True"]),
    ("[run]\nsparsity = ['x']\n", ["is no list of numbers"]),
    ("[run]\nsparsity = []\n", ["nothing to run"]),
    ("run = 3\n", ["'run' is a section"]),
    ("data = 3\n", ["'data' is a section"]),
    ("engine = 3\n", ["'engine' is a section"]),
    ("train = 3\n", ["'train' is a section"]),
    ("method = 'snip'\n", ["'method' is a section"]),
    ("[trian]\nsteps = 3\n", ["Unknown section of settings 'trian'. Did you mean 'train'?"]),
    ("[train]\nstps = 3\n", ["Unknown setting 'train.stps'. Did you mean 'train.steps'?"]),
    ("[train]\nsteps = 'many'\n", ["train.steps needs int, not 'many'"]),
    ("[train]\nsteps = [3]\n", ["train.steps needs int"]),
    ("[train.steps]\nsteps = 3\n", ["train.steps needs int"]),
    ("[method]\nvariant = ['release']\n", ["Unknown variant of snip"]),
    ("[method]\nscore = 5\n", ["Unknown scorer '5'"]),
]


@pytest.mark.parametrize(("text", "texts"), BAD_FILES)
def test_a_bad_config_file_is_refused_before_anything_runs(mtlbench, tmp_path, text, texts):
    config = write(tmp_path / "config.toml", text)
    named = [] if text.startswith("[run]\nmethod") else ["--method", "snip"]
    named += [] if text.startswith("[run]\ndataset") else ["--dataset", "toy"]
    refused(mtlbench("run", "--plugin", PLUGIN, *named, "--config", config), *texts)
    assert list(tmp_path.iterdir()) == [tmp_path / "config.toml"]


def test_a_config_file_must_be_a_text_file(mtlbench, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    refused(mtlbench("run", *TOY, "--config", "binary"), "binary is not valid TOML")
    refused(mtlbench("run", *TOY, "--config", "missing.toml"), "missing.toml", "does not exist")
    refused(mtlbench("run", *TOY, "--config", "."), "is a directory")


# Bad input


BAD = [
    (["--sparsity", "1"], ["Sparsity 1.0 is not in [0, 1)"]),
    (["--sparsity", "-0.1"], ["Sparsity -0.1 is not in [0, 1)"]),
    (["--sparsity", "nan"], ["Sparsity nan is not in [0, 1)"]),
    (["--sparsity", "inf"], ["Sparsity inf is not in [0, 1)"]),
    (["--sparsity", "0.5,1"], ["Sparsity 1.0 is not in [0, 1)"]),
    (["--sparsity", "abc"], ["Sparsity 'abc' is no list of numbers"]),
    (["--sparsity", ""], ["Sparsity '' is no list of numbers"]),
    (["--sparsity", "0.5,"], ["Sparsity '0.5,' is no list of numbers"]),
    (["--seeds", "0"], ["'--seeds'", "x>=1"]),
    (["--seeds", "two"], ["'--seeds'", "'two'"]),
    (["--method", "snp"], ["Unknown method 'snp'. Did you mean 'snip'?", "disparse-static"]),
    (["--method", "snip:3"], ["'snip' takes nothing behind a colon"]),
    (["--dataset", "toi"], ["Unknown dataset 'toi'. Did you mean 'toy'?"]),
    (["--dataset", ""], ["--dataset is missing"]),
    (["--model", "toy-nett"], ["Unknown model 'toy-nett'. Did you mean 'toy-net'?"]),
    (["--protocol", "standart"], ["Unknown protocol 'standart'. Did you mean 'standard'?"]),
    (["--device", "tpu"], ["Device 'tpu' is none of auto, cpu, cuda and cuda:N"]),
    (["--device", "cuda:99"], ["There is no device 'cuda:99'"]),
    (["--device", "cuda:x"], ["Device 'cuda:x' is none of"]),
    (["--runner", "slrum"], ["Unknown runner 'slrum'. Did you mean 'slurm'? Known: local, ray, slurm."]),
    (["--score", "salienc"], ["Unknown scorer 'salienc'. Did you mean 'saliency'?"]),
    (["--scope", "all"], ["Unknown value for method.scope: 'all'", "joint, per-task"]),
    (["--arbiter", "majorty"], ["Unknown arbiter 'majorty'. Did you mean 'majority'?"]),
    (["--arbiter", "at-least"], ["'at-least' needs"]),
    (["--allocation", "erkk"], ["Unknown allocation 'erkk'. Did you mean 'erk'?"]),
    (["--schedule", "twice"], ["Unknown schedule 'twice'", "once"]),
    (["--set", "train"], ["'train' is no setting; write SECTION.NAME=VALUE"]),
    (["--set", "train.steps"], ["'train.steps' is no setting"]),
    (["--set", "steps=3"], ["'steps=3' is no setting"]),
    (["--set", "train..steps=3"], ["is no setting"]),
    (["--set", "trian.steps=3"], ["Unknown section of settings 'trian'. Did you mean 'train'?"]),
    (["--set", "train.stps=3"], ["Unknown setting 'train.stps'. Did you mean 'train.steps'?"]),
    (["--set", "train.steps=0"], ["steps of a recipe is 0; it must be 1 or more"]),
    (["--set", "train.steps=1.5"], ["train.steps needs int, not '1.5'"]),
    (["--set", "train.steps=inf"], ["train.steps needs int, not 'inf'"]),
    (["--set", "train.steps="], ["train.steps needs int, not ''"]),
    (["--set", "train.lr=nan"], ["lr of a recipe is nan"]),
    (["--set", "train.lr=-1"], ["lr of a recipe is -1.0"]),
    (["--set", "model.width=wide"], ["model.width needs int, not 'wide'"]),
    (["--set", "model.depth=3"], ["Unknown setting 'model.depth'", "model.width"]),
    (["--set", "method.score.batches=-1"], ["batches", "must be 0 or more"]),
    (["--set", "method.score.batches=0"], ["batches=0", "before training there is none"]),
    (
        ["--method", "lth-iterative", "--score", "gradient", "--set", "method.score.batches=0"],
        ["batches=0", "before training there is none"],
    ),
    (["--scope", "per-task"], ["'snip' has a voter for each task", "set method.arbiter"]),
    (["--method", "lth", "--set", "method.start.rewind=30"], ["rewinds to step 30, but training has 30 steps"]),
    (["--method", "snip", "--set", "method.start.rewind=3"], ["start.rewind is 3"]),
    (["--method", "rigl", "--sparsity", "0.999"], ["At sparsity 0.999 allocation 'erk' leaves layer", "without"]),
    (["--method", "rigl", "--set", "method.grow=none"], ["Unknown scorer 'none'"]),
    (["--schedule", "every"], ["'snip' has nothing to grow by; set method.grow"]),
    (["--method", "rigl", "--set", "method.control=shuffled"], ["control=shuffled needs masks that", "stay"]),
    (["--method", "magnitude", "--set", "method.control=redrawn"], ["'magnitude' goes on from trained ones"]),
    (["--method", "dense", "--set", "method.control=shuffled"], ["needs masks"]),
    (["--method", "adapmtl", "--set", "method.checkpoint=gone"], ["There is no file gone to start from"]),
    (["--method", "adapmtl", "--set", "method.s_init=inf"], ["s_init of method 'adapmtl' is inf"]),
    (["--method", "adapmtl", "--arbiter", "or"], ["Unknown setting 'method.arbiter'", "method.s_init"]),
    (["--method", "synflow", "--set", "method.calibration=fixed-ratio"], ["cannot prune in rounds"]),
    (["--set", "method.rounds=5"], ["freshly drawn weights", "method.score.init=own"]),
    (["--set", "method.score.batch=1"], ["Unknown setting 'method.score.batch'", "method.score.batches"]),
    (["--set", "method.schedule.step=30"], ["prunes at step 30, but training has 30 steps"]),
    (["--set", "method.variant=released"], ["Unknown variant of snip 'released'"]),
    (["--set", "method.budget=finetune"], ["fine-tunes weights that were never trained"]),
    (["--set", "engine.workers=-1"], ["workers of the engine is -1"]),
    (["--set", "engine.worker=1"], ["Unknown setting 'engine.worker'. Did you mean 'engine.workers'?"]),
    (["--set", "data.require_real=maybe"], ["data.require_real needs bool, not 'maybe'"]),
    (["--nonsense"], ["No such option", "--nonsense"]),
    (["extra"], ["unexpected extra argument", "extra"]),
]


@pytest.mark.parametrize(("options", "texts"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_bad_input_is_refused_in_one_line_before_anything_runs(mtlbench, tmp_path, options, texts):
    method = () if "--method" in options else ("--method", "snip")
    refused(mtlbench("run", *TOY, *method, *options), *texts)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_network_is_refused(mtlbench, tmp_path):
    assert (
        mtlbench("run", *TOY, "--method", "snip", "--model", "toy-net", *QUICK, "--set", "model.width=8").code == 0
    )
    (weights,) = (tmp_path / "runs").glob("snip-*/weights.safetensors")
    start = ("--method", "adapmtl", "--set", f"method.checkpoint={weights}")
    refused(mtlbench("run", *TOY, *start, *QUICK), "does not hold weights of model 'toy-net'")
    assert mtlbench("run", *TOY, *start, *QUICK, "--set", "model.width=8").code == 0
    notes = tmp_path / "notes.txt"
    notes.write_text("no weights")
    refused(
        mtlbench("run", *TOY, "--method", "adapmtl", "--set", f"method.checkpoint={notes}"),
        "notes.txt cannot be read as the weights of a run",
    )
    assert notes.exists()


def test_a_majority_of_two_tasks_runs_with_a_warning(mtlbench):
    answer = mtlbench("run", *TOY, "--method", "snip", "--scope", "per-task", "--arbiter", "majority", *QUICK)
    assert answer.code == 0
    assert "Arbiter 'majority' needs three tasks to differ from others" in answer.err
    assert "with 2 it is the same as 'or'" in answer.err


def test_a_plan_refuses_what_a_run_refuses(mtlbench):
    refused(mtlbench("plan", *TOY, "--method", "snip", "--sparsity", "1"), "not in [0, 1)")
    refused(mtlbench("plan", *TOY, "--method", "snip", "--set", "engine.worker=1"), "'engine.workers'?")


def test_a_method_and_a_dataset_must_be_named(mtlbench):
    refused(mtlbench("run"), "--method is missing, as in: mtlbench run")
    refused(mtlbench("run", "--method", ","), "--method is missing")
    refused(mtlbench("run", "--method", "snip"), "--dataset is missing")


def test_the_nearest_command_is_proposed(mtlbench):
    refused(mtlbench("tabel"), "Unknown command 'tabel'. Did you mean 'table'? Known: compare, completion, data")


def test_without_arguments_the_help_is_shown(mtlbench):
    answer = mtlbench()
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("Usage: mtlbench")
    assert all(
        re.search(rf"^  {name} ", answer.out, re.MULTILINE)
        for name in ("data", "ls", "plan", "run", "show", "table")
    )
    assert answer == mtlbench("--help")


@pytest.mark.parametrize("command", ["data", "ls", "plan", "run", "show", "table"])
def test_every_command_has_help(mtlbench, command):
    answer = mtlbench(command, "-h")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: mtlbench {command}")


def test_a_table_of_nothing_and_an_unknown_run_or_format_are_refused(mtlbench, store):
    refused(mtlbench("table"), "There are no results in runs")
    refused(mtlbench("show", "snip"), "Unknown run 'snip'. Known: none.")
    refused(mtlbench("show", "snip-toy", "--store", str(store)), "may be any of snip-toy-0.5-s0-")
    refused(mtlbench("show", "snap-toy-0.5-s0", "--store", str(store)), "Did you mean 'snip-toy-0.5-s")
    refused(mtlbench("table", "--format", "pdf"), "'pdf' is not one of 'terminal'")


def test_a_place_that_cannot_be_written_is_named(mtlbench, tmp_path, store):
    (tmp_path / "file").write_text("mine")
    run = ("run", *TOY, "--method", "snip")
    refused(mtlbench(*run, "--store", "file/runs"), "Cannot write file/runs", "choose another folder", code=1)
    refused(mtlbench(*run, "--store", "file"), "'file' is a file")
    output = ("table", "--store", str(store), "--output")
    refused(mtlbench(*output, "file/table"), "Cannot write file/table", code=1)
    refused(mtlbench(*output, "."), "is a directory")
    assert (tmp_path / "file").read_text() == "mine"


def test_debug_shows_the_traceback_before_the_line(mtlbench):
    answer = mtlbench("run", *TOY, "--method", "snp", "--debug")
    assert answer.code == 2
    assert answer.err.startswith("Traceback (most recent call last)")
    assert answer.err.splitlines()[-1].startswith("Error: Unknown method 'snp'")


def test_a_bug_is_called_one_in_one_line(mtlbench, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("mtlprune_bench.runs.catalogue.tables", broken)
    answer = mtlbench("ls")
    assert answer.code == 1
    line = "Error: ZeroDivisionError: two lines. This is a bug in mtlbench or a plugin; --debug shows where.\n"
    assert answer.err == line


# Data that are not there


SHADOW = """
from mtlprune_bench import Dataset, Labels, Recipe, hookimpl

@hookimpl
def register_datasets(register):
    recipe = Recipe()
    register(
        Dataset(
            name="shadow", description="", labels=(Labels("segmentation", classes=5), Labels("normals")),
            loss_weights={"segmentation": 1.0, "normals": 5.0}, model="none", train=recipe, finetune=recipe,
            open=lambda request: None, source="Get them from the moon.", stand_in="toy",
        )
    )
"""


@pytest.fixture
def shadow(tmp_path, tmp_path_factory):
    """Return the options that name a method and a dataset whose files are never found."""
    plugin = write(tmp_path_factory.mktemp("plugin") / "shadow.py", SHADOW)
    return ("--plugin", PLUGIN, "--plugin", plugin, "--dataset", "shadow", "--method", "random", *QUICK)


def test_a_stand_in_says_so_before_in_the_rows_and_in_the_table(mtlbench, tmp_path, shadow):
    answer = mtlbench("run", *shadow)
    assert answer.code == 0
    assert answer.err.startswith("STAND-IN DATA: instead of shadow run, with the same tasks, generated patches.")
    assert "--data-root or MTLBENCH_DATA" in answer.err
    assert "shadow STAND-IN, not the real data: generated patches; model toy-net" in answer.out
    (folder,) = Store(tmp_path / "runs").runs()
    assert {(row["dataset"], row["stand_in"]) for row in read_rows(folder)} == {("shadow", True)}
    assert "STAND-IN DATA" in mtlbench("plan", *shadow).err


def test_real_data_may_be_required(mtlbench, tmp_path, shadow, monkeypatch):
    refused(mtlbench("run", *shadow, "--require-real"), "The files of shadow were not found", "the moon", code=1)
    refused(mtlbench("run", *shadow, "--data-root", "nowhere"), "There is no folder nowhere", code=1)
    (tmp_path / "empty").mkdir()
    refused(mtlbench("run", *shadow, "--data-root", "empty"), "of shadow were not found in empty", code=1)
    monkeypatch.setenv("MTLBENCH_DATA", "empty")
    refused(mtlbench("run", *shadow, "--require-real"), "of shadow were not found in empty", code=1)
    assert not (tmp_path / "runs").exists()
    assert mtlbench("run", *shadow).code == 0, "the variable alone is for all datasets, so a stand-in may run"


# Stopping


STOP = """
import os
from mtlprune_bench import hookimpl

@hookimpl
def step_finished(run, step):
    if os.environ.get("STOP_AT") == str(step):
        raise KeyboardInterrupt
"""


def test_an_interrupted_run_says_so_and_the_same_command_continues_it(mtlbench, tmp_path, monkeypatch):
    plugin = write(tmp_path / "stop.py", STOP)
    command = ("run", *TOY, "--plugin", plugin, "--method", "snip", "--set", "engine.checkpoint_seconds=0")
    monkeypatch.setenv("STOP_AT", "20")
    stopped = mtlbench(*command, "--store", "pieces")
    assert stopped.code == 130
    assert stopped.err.strip() == "Error: Stopped. What is stored is kept: give the same command again to go on."
    (pieces,) = Store(tmp_path / "pieces").runs()
    assert len(list(read_history(pieces / "history.jsonl"))) == 21
    monkeypatch.delenv("STOP_AT")
    assert mtlbench(*command, "--store", "pieces").code == 0
    lines = (pieces / "history.jsonl").read_text().splitlines()
    assert len(lines) == 31, "only the step in which it was stopped was made again"
    assert mtlbench(*command, "--store", "whole").code == 0
    (whole,) = Store(tmp_path / "whole").runs()
    for name in ("masks.safetensors", "weights.safetensors"):
        assert (whole / name).read_bytes() == (pieces / name).read_bytes()
