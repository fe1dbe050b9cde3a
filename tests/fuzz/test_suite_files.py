"""Suites: whatever stands in a file of runs, it is read, or refused with one line that names it."""

import contextlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import strategies as st
from inputs import ODD, TREES, fuzz, mutated, sizes

from mtlprune_bench.errors import UsageError
from mtlprune_bench.runs.grid import CELL_KEYS, SUITE_KEYS, read_run, read_suite, run_requests
from mtlprune_bench.runs.request import SECTIONS

SUITES = [path.read_bytes() for path in sorted(Path(__file__).parents[2].glob("benchmarks/*.toml"))]
KEYS = (*CELL_KEYS, *SUITE_KEYS, "seeds", "run", "settings", "vary", *SECTIONS, "train.lr", "method.score.batches")
WORDS = st.sampled_from(["snip", "dense", "nyuv2", "toy", "standard", 0.5, [0.5, 0.9], 2, [0, 1], ["snip", "lth"]])


@pytest.fixture
def file(tmp_path):
    return tmp_path / "suite.toml"


def toml(value):
    """Return a value as TOML writes it inline; what TOML has not, as a text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str) or value is None:
        return json.dumps(str(value))
    return repr(value).lower()


TABLES = st.dictionaries(st.sampled_from(KEYS), WORDS | ODD | TREES, max_size=5)


@st.composite
def suites(draw):
    """Return the text of a suite of tables that have the right names, and anything in them."""
    parts = [f"{key} = {toml(value)}" for key, value in draw(TABLES).items()]
    for header in draw(
        st.lists(st.sampled_from(["[run]", "[[grid]]", "[[exclude]]", "[methods.snip]", "[train]"]))
    ):
        parts += [header, *(f"{toml(key)} = {toml(value)}" for key, value in draw(TABLES).items())]
    return "\n".join(parts).encode("utf-8", "surrogatepass")


def read(file):
    """Return what reads a file in both ways."""

    def target(data):
        file.write_bytes(data)
        for way in (lambda: read_suite(file), lambda: run_requests(*read_run(file))):
            with contextlib.suppress(UsageError):
                way()

    return target


@sizes(6_000)
@pytest.mark.parametrize("kind", ["bytes", "changed", "made up"])
def test_files_of_runs(kind, count, file, tmp_path, capsys):
    changed = st.sampled_from(SUITES).flatmap(mutated)
    strategy = {"bytes": st.binary() | st.text().map(str.encode), "changed": changed, "made up": suites()}[kind]
    fuzz(read(file), strategy, count, tmp_path, capsys)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a." * 2_000 + "b = 1",
        '[run]\nmethod = "snip"\ndataset = "toy"\nseeds = 1000000000000',
        '[run]\nmethod = "snip"\ndataset = "toy"\nsparsity = [' + "0.5," * 1000 + "]\nseeds = 1000000",
    ],
    ids=["nested", "dotted", "seeds", "product"],
)
def test_files_that_are_far_too_large_are_refused(text, file):
    file.write_text(text)
    with pytest.raises(UsageError):
        read_suite(file)
    with pytest.raises(UsageError):
        run_requests(*read_run(file))
