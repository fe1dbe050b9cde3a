"""The store's check and repair: every flipped bit is found, nothing damaged is used, and nothing is deleted."""

import ast
import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from mtlprune_bench.commands import run_cli
from mtlprune_bench.errors import UsageError
from mtlprune_bench.files import locked, unsealed
from mtlprune_bench.runs.integrity import check, folders_of, repair
from mtlprune_bench.runs.merge import merge
from mtlprune_bench.store import LOCK, VERSION, Store, read_history, read_json, read_rows, write_json
from mtlprune_bench.training.checkpoint import load_tensors, save_tensors

ROOT = Path(__file__).parents[1]
PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
OPTIONS = ("--plugin", PLUGIN, "--dataset", "toy", "--set", "train.steps=4", "--set", "finetune.steps=2")
FINETUNE = ("--method", "toy-finetune", "--sparsity", "0.5")
LATE = ("--method", "gmp", "--sparsity", "0.5", "--set", "train.update_every=1")
SCORED = ("--method", "snip", "--sparsity", "0.5,0.8")


def run(folder, *asked):
    assert run_cli(["run", *OPTIONS, *asked, "--store", str(folder)]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a store with every kind of file in it."""
    folder = tmp_path_factory.mktemp("made") / "runs"
    for asked in (FINETUNE, LATE, SCORED):
        run(folder, *asked)
    for name in ("checkpoint.safetensors", "best.safetensors"):
        save_tensors(Store(folder).find("gmp") / name, {"weight": torch.ones(3)}, {"step": 3})
    return folder


@pytest.fixture
def store(made, tmp_path):
    """Return a copy of that store."""
    return Store(Path(shutil.copytree(made, tmp_path / "runs")))


def files_of(store, name):
    return sorted(store.folder.rglob(name))


def flip(path, place=None, seed=0):
    """Flip a bit of a file, at a random place where none is named."""
    data = bytearray(path.read_bytes())
    chosen = random.Random(f"{seed} {path.name}")
    data[chosen.randrange(len(data)) if place is None else place] ^= 1 << chosen.randrange(8)
    path.write_bytes(data)
    return bytes(data)


def damaged(store):
    return [file.path for folder in folders_of(store) for file in check(*folder).damaged]


KINDS = (
    *("config.json", "plan.json", "request.json", "environment.json", "cost.json", "store.json"),
    *("history.jsonl", "sparsity.jsonl", "rows.parquet", "scores.safetensors", "start-masks.safetensors"),
    *("masks.safetensors", "weights.safetensors", "checkpoint.safetensors", "best.safetensors"),
)


def test_a_store_as_it_was_written_is_verified_to_the_last_file(store, capsys):
    found = [check(*folder) for folder in folders_of(store)]
    states = {file.path.name: file.state for folder in found for file in folder.files}
    assert states == dict.fromkeys(KINDS, "verified")
    assert {folder.progress for folder in found} == {"finished"}
    assert run_cli(["store", "check", "--store", str(store.folder)]) == 0
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    for kind, folders in (("run", "4"), ("stage", "2")):
        count = sum(len(folder.files) for folder in found if folder.kind == kind)
        assert [kind, folders, "0", "0", str(count), "0", "0", "0"] in lines


@pytest.mark.parametrize("name", KINDS)
def test_any_flipped_bit_is_found_in_every_kind_of_file(store, name):
    path = files_of(store, name)[0]
    good = path.read_bytes()
    for seed in range(20):
        flip(path, seed=seed)
        kind = "store" if name == "store.json" else "stage" if path.parent.parent.name == "stages" else "run"
        assert [file.path for file in check(path.parent, kind).damaged] == [path], seed
        path.write_bytes(good)
    flip(path, place=-1)
    assert damaged(store) == [path]


@pytest.mark.parametrize("name", KINDS)
def test_what_is_damaged_is_named_moved_aside_and_found_no_more(store, name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    path = files_of(store, name)[0]
    data = flip(path)
    option = ("--store", str(store.folder))
    if name != "store.json":  # which is looked at, and moved aside, whenever a store is opened
        assert run_cli(["store", "check", *option]) == 1
        assert str(path.relative_to(store.folder)) in capsys.readouterr().out
        assert path.read_bytes() == data, "check changes nothing"
        assert run_cli(["store", "repair", *option]) == 0
        assert str(path.relative_to(store.folder)) in capsys.readouterr().out
    else:
        with pytest.warns(UserWarning, match="store.json is damaged"):
            Store(store.folder)
    assert path.with_name(f"{name}.damaged-1").read_bytes() == data
    assert run_cli(["store", "check", *option]) == 0
    assert run_cli(["store", "repair", *option]) == 0
    assert "Nothing is damaged." in capsys.readouterr().out


@pytest.mark.parametrize("asked", [FINETUNE, LATE, SCORED], ids=["finetune", "late", "scored"])
def test_what_was_set_aside_is_made_again_to_the_bit_by_the_command_that_is_named(store, asked, capsys):
    names = ("weights.safetensors", "masks.safetensors", "scores.safetensors", "start-masks.safetensors")
    paths = [path for name in names for path in files_of(store, name)]
    for path in (*files_of(store, "checkpoint.safetensors"), *files_of(store, "best.safetensors")):
        path.unlink()
    before = {path: path.read_bytes() for path in paths}
    rows = {folder: read_rows(folder) for folder in store.runs()}
    for path in paths:
        flip(path)
    assert run_cli(["store", "repair", "--again", "--store", str(store.folder)]) == 0
    assert all(read_rows(folder) is None for folder in rows)
    capsys.readouterr()
    run(store.folder, *asked)
    made = [folder for folder in rows if read_rows(folder) is not None]
    assert len(made) == (2 if asked is SCORED else 1)
    for folder in made:
        assert (folder / "rows.parquet.damaged-1").exists()
        assert numbers(read_rows(folder)) == numbers(rows[folder])
        assert all(path.read_bytes() == before[path] for path in paths if path.parent == folder)
    assert damaged(store) == []


def numbers(rows):
    """Return what of rows does not differ from machine to machine."""
    return [(row["metric"], row["value"]) for row in rows if row["metric"] not in ("seconds", "peak_memory")]


def test_the_numbers_of_a_run_stay_when_its_weights_are_damaged(store):
    folder = store.find("gmp")
    rows = read_rows(folder)
    flip(folder / "weights.safetensors")
    done = [each for _, repairs in repair(store) for each in repairs]
    assert [(each.path.name, "--again" in each.outcome) for each in done] == [("weights.safetensors", True)]
    assert read_rows(folder) == rows
    (again,) = [each for _, repairs in repair(store, again=True) for each in repairs]
    assert (again.path.name, again.outcome) == (
        "rows.parquet",
        "the run is measured again; what is left of its training is used",
    )
    assert [each for _, repairs in repair(store, again=True) for each in repairs] == []


def test_the_command_that_is_named_is_the_one_of_the_last_session(store, capsys):
    dense = files_of(store, "dense-*")[0]
    for folder in (dense, store.find("gmp")):
        flip(folder / "weights.safetensors")
    for name, words in (("gmp", ["mtlbench", "run", "--method", "gmp, b"]), ("toy-finetune", ["python"])):
        sessions = read_json(store.find(name) / "environment.json")
        write_json(
            store.find(name) / "environment.json", [{"command": ["first"]}, sessions[-1] | {"command": words}]
        )
    done = {each.path.parent: each.command for _, repairs in repair(store) for each in repairs}
    assert done[store.find("gmp")] == "mtlbench run --method 'gmp, b'"
    assert done[dense] == "the mtlbench run or suite run that made it"


def test_good_lines_of_a_damaged_history_stay(store):
    path = store.find("gmp") / "history.jsonl"
    data = path.read_bytes()
    flip(path, place=data.index(b"\n") + 90)
    kept = path.read_bytes()
    (done,) = [each for _, repairs in repair(store) for each in repairs]
    assert (done.problem, done.command) == ("the checksum does not fit in line 2", "")
    assert [entry["step"] for entry in read_history(path)] == [0, 2, 3]
    assert path.with_name("history.jsonl.damaged-1").read_bytes() == kept


def test_half_a_line_is_damage_only_where_the_training_has_ended(store):
    folder = store.find("gmp")
    path = folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert damaged(store) == [path]
    (folder / "weights.safetensors").unlink()
    assert damaged(store) == []


def test_what_a_process_works_on_is_left_out_and_named(store, capsys):
    folder = store.find("gmp")
    data = flip(folder / "plan.json")
    with locked(folder / LOCK, print):
        for action, word in (("check", "0"), ("repair", "Nothing is damaged.")):
            assert run_cli(["store", action, "--store", str(store.folder)]) == 0
            answer = capsys.readouterr()
            assert f"{folder.name} is left out: a process is working on it." in answer.err
            assert word in answer.out
    assert (folder / "plan.json").read_bytes() == data
    assert damaged(store) == [folder / "plan.json"]


def test_nothing_is_lost_by_a_repair(store):
    for name in KINDS[:-1]:
        if name != "store.json":
            flip(files_of(store, name)[-1])
    before = sorted(path.read_bytes() for path in store.folder.rglob("*") if path.is_file())
    for _ in repair(store, again=True):
        pass
    after = [path.read_bytes() for path in store.folder.rglob("*") if path.is_file()]
    assert all(after.count(data) >= before.count(data) for data in before if data and not data.isdigit())


def test_a_store_of_the_first_format_opens_and_is_called_older(store, capsys):
    for path in [*store.folder.rglob("*.json"), *store.folder.rglob("*.jsonl")]:
        lines = path.read_bytes().split(b"\n") if path.suffix == ".jsonl" else [path.read_bytes()]
        path.write_bytes(b"\n".join(map(unsealed, lines)))
    (store.folder / "store.json").unlink()
    states = {file.path.name: file.state for folder in folders_of(store) for file in check(*folder).files}
    older = {"plan.json", "request.json", "environment.json", "cost.json", "history.jsonl", "sparsity.jsonl"}
    assert {name for name, state in states.items() if state == "older"} == older
    assert states["config.json"] == "verified", "the name of its folder holds its hash"
    before = (store.find("gmp") / "rows.parquet").read_bytes()
    run(store.folder, *LATE)
    assert (store.find("gmp") / "rows.parquet").read_bytes() == before
    assert read_json(store.folder / "store.json") == {"version": VERSION}
    config = store.find("gmp") / "config.json"
    config.write_text(json.dumps(read_json(config) | {"seed": 7}))
    assert damaged(store) == [config]


def test_a_store_of_a_later_format_is_refused_by_every_command(store, capsys):
    write_json(store.folder / "store.json", {"version": VERSION + 1})
    for words in (["store", "check"], ["table"], ["run", *OPTIONS, *LATE], ["gc"]):
        assert run_cli([*words, "--store", str(store.folder)]) == 1
        assert "Install a later one" in capsys.readouterr().err


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(UsageError, match=rf"There is no store in {tmp_path}. Name the folder"):
        folders_of(Store(tmp_path))


def test_files_that_nobody_reads_are_unknown_and_never_damaged(store):
    folder = store.find("gmp")
    (folder / "worker.log").write_bytes(b"\xff\x00")
    (folder / "notes").mkdir()
    (folder / "notes" / "film.gif").write_bytes(b"")
    states = {file.path.name: file.state for file in check(folder, "run").files}
    assert (states["worker.log"], states["film.gif"]) == ("unknown", "unknown")


def test_a_damaged_run_and_one_with_links_are_not_merged(store, tmp_path):
    flip(store.find("gmp") / "weights.safetensors")
    (tmp_path / "secret").write_text("mine")
    (store.find("toy-finetune") / "note").symlink_to(tmp_path / "secret")
    target = Store(tmp_path / "new")
    skipped = {merged.name: merged.note for _, merged in merge([store.folder], target) if merged.end == "skipped"}
    assert set(skipped) == {store.find("gmp").name, store.find("toy-finetune").name}
    assert "weights.safetensors is damaged (the checksum does not fit)" in skipped[store.find("gmp").name]
    assert "is a link" in skipped[store.find("toy-finetune").name]
    assert [path.name for path in target.runs()] == [path.name for path in store.runs() if "snip" in path.name]


def test_a_damaged_file_is_never_loaded(store):
    for path in store.folder.rglob("*.safetensors"):
        flip(path)
        with pytest.warns(UserWarning, match="is damaged"):
            assert load_tensors(path) is None


CALLS = {
    "eval": "always",
    "exec": "always",
    "os.system": "always",
    "pickle.load": "always",
    "pickle.loads": "always",
    "torch.load": "weights_only",
    "np.load": "allow_pickle",
    "numpy.load": "allow_pickle",
    "yaml.load": "always",
    "yaml.unsafe_load": "always",
}
SAFE = {"weights_only": True, "allow_pickle": False}
# What the processes of one run tell each other, in a folder that only their user can read.
TRUSTED = {"training/launch.py": ["pickle.loads(file.read_bytes())", "pickle.loads(pickle.dumps(error))"]}


def unsafe(tree):
    """Yield the calls that could execute what they read."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {item.arg: getattr(item.value, "value", None) for item in node.keywords}
        option = CALLS.get(ast.unparse(node.func))
        if option and not (option in SAFE and given.get(option) is SAFE[option]):
            yield ast.unparse(node)
        if given.get("shell"):
            yield ast.unparse(node)


@pytest.mark.parametrize("folder", ["mtlprune_bench", "plugins"])
def test_nothing_that_is_read_is_executed(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        trusted = TRUSTED.get(path.relative_to(ROOT / folder).as_posix(), [])
        assert list(unsafe(ast.parse(path.read_text()))) == trusted, path


def test_what_would_execute_something_is_recognised():
    words = "eval(x)\ntorch.load(p)\nnp.load(p, allow_pickle=True)\nsubprocess.run(x, shell=True)\nyaml.load(x)"
    assert len(list(unsafe(ast.parse(words + "\npickle.loads(x)")))) == 6
    assert list(unsafe(ast.parse("torch.load(p, weights_only=True)\nnp.load(p, allow_pickle=False)"))) == []
