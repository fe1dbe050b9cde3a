"""Stored files: with any bytes changed they are as they were written, or damaged; never anything else."""

import contextlib
import json
import shutil

import pytest
import torch
from hypothesis import strategies as st
from inputs import ODD, TREES, fuzz, mutated, sizes

from mtlprune_bench import Masks
from mtlprune_bench.errors import MtlbenchError
from mtlprune_bench.files import sealed
from mtlprune_bench.runs.costs import kept_cost
from mtlprune_bench.runs.integrity import check, folders_of, repair
from mtlprune_bench.runs.leftovers import leftovers
from mtlprune_bench.runs.reopening import reopen
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store, parse_json, parse_lines, parse_rows, read_history, read_json, read_rows
from mtlprune_bench.testing import TINY, load_registry, register_tiny
from mtlprune_bench.training.checkpoint import (
    load_masks,
    load_scores,
    load_tensors,
    read_weights,
    save_masks,
    save_scores,
    save_tensors,
)

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)}
MASKS = {"a.weight": torch.tensor([[True, False, True]]), "b.weight": torch.zeros(9, dtype=torch.bool)}
SCORES = {"seg": {"a": torch.ones(3)}, "normals": {"a": torch.zeros(3)}}


@pytest.fixture(scope="module")
def plugins():
    registry = load_registry()
    register_tiny(registry)
    return registry


@pytest.fixture(scope="module")
def made(plugins, tmp_path_factory):
    """Return a store with two runs and a stage."""
    folder = tmp_path_factory.mktemp("made") / "runs"
    asked = [Request(method=name, dataset=TINY, sparsity=0.6, seed=0) for name in ("rigl", "magnitude")]
    assert all(outcome.good for outcome in run_all(asked, Store(folder), plugins, notify=lambda text: None))
    return folder


def same(one, other):
    """Return whether two tensors, or nested mappings of them, are equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


READERS = {
    "tensors": (lambda path: save_tensors(path, TENSORS, {"step": 3}), load_tensors, (TENSORS, {"step": 3})),
    "masks": (lambda path: save_masks(path, MASKS), load_masks, MASKS),
    "scores": (lambda path: save_scores(path, SCORES), load_scores, SCORES),
}


@sizes(6_000)
@pytest.mark.parametrize("kind", READERS)
def test_files_of_tensors(kind, count, tmp_path, capsys):
    save, load, whole = READERS[kind]
    path = tmp_path / "file.safetensors"
    save(path)
    sound = path.read_bytes()

    def target(data):
        path.write_bytes(data)
        found = load(path)
        assert (found is None) == (not path.exists()), "what is damaged is moved aside"
        parts = zip(found, whole, strict=True) if kind == "tensors" and found else [(found, whole)]
        assert found is None or all(same(*pair) for pair in parts)
        for aside in tmp_path.glob("*.damaged-*"):
            assert aside.read_bytes() == data
            aside.unlink()

    fuzz(target, mutated(sound) | st.binary(), count, tmp_path, capsys)


@sizes(6_000)
def test_files_of_weights_and_masks_that_a_user_names(count, tmp_path, capsys):
    """With a checksum that fits, too, as in a file that somebody has made up."""
    path = tmp_path / "file.safetensors"
    save_masks(path, MASKS)
    sound = path.read_bytes()

    def target(given):
        if isinstance(given, bytes):
            path.write_bytes(given)
        else:
            save_tensors(path, TENSORS, given)
        for read in (read_weights, Masks.load):
            words = str(path)
            try:
                assert all(isinstance(tensor, torch.Tensor) for tensor in read(path).values())
            except MtlbenchError as error:
                words = str(error)
            assert str(path) in words

    shapes = st.dictionaries(st.sampled_from(["a.weight", "b", "c"]), st.lists(ODD, max_size=3) | ODD, max_size=2)
    facts = st.dictionaries(st.sampled_from(["shapes", "voters"]), shapes | TREES).filter(writable)
    fuzz(target, mutated(sound) | facts, count, tmp_path, capsys)


def writable(value):
    """Return whether JSON's text of a value has an encoding."""
    return json.dumps(value).isascii()


@sizes(8_000)
def test_rows(count, made, tmp_path, capsys):
    sound = next(made.glob("rigl-*/rows.parquet")).read_bytes()
    whole = repr(parse_rows(sound))

    def target(data):
        assert repr(parse_rows(data)) == whole

    fuzz(target, mutated(sound) | st.binary(), count, tmp_path, capsys, ValueError)


@sizes(8_000)
def test_json_and_lines(count, made, tmp_path, capsys):
    sound = next(made.glob("rigl-*/config.json")).read_bytes()
    history = next(made.glob("rigl-*/history.jsonl")).read_bytes()
    value = parse_json(sound)
    lines = {line for _, line in parse_lines(history).entries}
    path = tmp_path / "history.jsonl"

    def target(given):
        data, changed = given
        found = parse_lines(changed)
        assert found.older or {line for _, line in found.entries} <= lines
        path.write_bytes(changed)
        steps = [entry["step"] for entry in read_history(path)]
        assert steps == sorted(set(steps))
        assert data.lstrip()[:12] != sound[:12] or parse_json(data) == value

    strategy = st.tuples(mutated(sound) | st.binary(), mutated(history) | st.binary())
    fuzz(target, strategy, count, tmp_path, capsys, ValueError)


@sizes(3_000)
def test_stores_in_which_a_file_holds_something_else(count, made, plugins, tmp_path, capsys):
    """Its checksum fits, as in one that a later version has written, or somebody by hand."""
    folder = shutil.copytree(made, tmp_path / "runs")
    names = sorted(str(path.relative_to(made)) for path in made.rglob("*.json"))
    sound = {name: (made / name).read_bytes() for name in names}

    def target(given):
        name, changes = given
        value = parse_json(sound[name])
        mixed = value | changes if isinstance(value, dict) and isinstance(changes, dict) else changes
        text = json.dumps(mixed)
        (folder / name).write_text(sealed(text) if text[0] in "{[" else text)
        try:
            look(folder, plugins)
        finally:
            (folder / name).write_bytes(sound[name])
            for aside in folder.rglob("*.damaged-*"):
                aside.unlink()

    tables = [value for value in map(parse_json, sound.values()) if isinstance(value, dict)]
    keys = sorted({key for table in tables for key in table})
    changes = st.dictionaries(st.sampled_from(keys) | st.text(max_size=5), TREES, max_size=2) | TREES
    strategy = st.tuples(st.sampled_from(names), changes.filter(writable))
    fuzz(target, strategy, count, tmp_path, capsys)


def look(folder, plugins):
    """Read a store in every way; what cannot be read is one line."""
    for action in (
        lambda store: store.rows(),
        lambda store: [read_rows(run) for run in store.runs()],
        lambda store: [check(*each) for each in folders_of(store)],
        lambda store: leftovers(store, scores=True),
        lambda store: list(repair(store)),
        lambda store: [kept_cost(run) for run in store.runs()],
        lambda store: [reopen(run, plugins) for run in store.runs()],
        lambda store: [read_json(path) for path in store.folder.rglob("*.json")],
    ):
        with contextlib.suppress(MtlbenchError):
            action(Store(folder))
