"""Command lines: any words after `mtlbench` are carried out, or refused with one line; no traceback, no hang."""

import re

import click
import matplotlib.font_manager  # noqa: F401  (looks for fonts, once, by another program)
import pytest
from hypothesis import strategies as st
from inputs import fuzz, sizes

from mtlprune_bench.commands import cli, run_cli
from mtlprune_bench.runs.request import Request
from mtlprune_bench.runs.suite import run_all
from mtlprune_bench.store import Store
from mtlprune_bench.testing import TINY, load_registry, register_tiny

DEAR = {"doctor", "trial", "measure", "export", "synth", "check", "plugin", "completion"}
"""Commands that take seconds, or write where they are told; their own tests give them odd arguments."""

WORDS = st.text(max_size=10).map(lambda word: word.replace("\0", ""))
"""Any words that a system can pass to a program."""

VALUES = [
    "runs",
    "suite.toml",
    "none",
    ".",
    "..",
    "snip",
    "dense",
    "nyuv2",
    "a=b",
    "method=snip",
    "sparsity=*",
    "0.5,0.9",
    "0",
]
VALUES += [
    "-1",
    "1e9",
    "nan",
    "terminal",
    "json",
    "markdown",
    "latex",
    "mean",
    "mean,adapmtl",
    "1/2",
    "1/9999999999",
    "é",
]
VALUES += [
    "",
    " ",
    "--",
    "-",
    "a\nb",
    "train.lr=1",
    "train.lr",
    "=",
    "mean_iou",
    "rigl",
    "rigl-",
    "methods",
    "x" * 500,
]


def commands(group=cli, before=()):
    """Yield the words of each command, with its options."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        words = (*before, name)
        if not DEAR.isdisjoint(words):
            continue
        if isinstance(command, click.Group):
            yield from commands(command, words)
        yield (
            words,
            [option for parameter in command.params for option in parameter.opts if option.startswith("-")],
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a store of two runs, and the file of a suite."""
    folder = tmp_path_factory.mktemp("place")
    registry = load_registry()
    register_tiny(registry)
    asked = [Request(method=name, dataset=TINY, sparsity=0.6, seed=0) for name in ("rigl", "magnitude")]
    assert all(one.good for one in run_all(asked, Store(folder / "runs"), registry, notify=lambda text: None))
    (folder / "suite.toml").write_text('[run]\nmethod = "snip"\ndataset = "none"\n')
    return folder


@pytest.fixture(scope="module")
def lines():
    """Return command lines: the words of a command, its options, those of others, and values."""
    known = list(commands())
    every = sorted({option for _, options in known for option in options} - {"--debug"})

    def line(given):
        words, options = given
        choice = st.sampled_from(sorted(set(options) - {"--debug"}) or every)
        parts = st.one_of(
            st.tuples(choice, st.sampled_from(VALUES)),
            st.tuples(st.sampled_from(VALUES)),
            st.tuples(choice),
            st.tuples(st.sampled_from(every), WORDS),
        )
        return st.lists(parts, max_size=4).map(lambda some: [*words, *(word for part in some for word in part)])

    made = st.sampled_from(known).flatmap(line)
    return made | st.lists(WORDS | st.sampled_from([words[0] for words, _ in known]), max_size=4)


@sizes(3_000)
def test_command_lines(count, place, lines, capsys, monkeypatch):
    for name in ("MPLCONFIGDIR", "MTLBENCH_CACHE"):
        monkeypatch.setenv(name, str(place / "cache"))
    monkeypatch.setattr("mtlprune_bench.runs.suite.execute_all", nothing_runs)

    def target(words):
        code = run_cli(words)
        said = capsys.readouterr()
        assert code in (0, 1, 2), said
        assert "Traceback" not in said.err, said.err
        assert "This is a bug" not in said.err, said.err
        if code == 2:
            assert re.search(r"(?m)^Error: .", said.err), said.err

    fuzz(target, lines, count, place, capsys)


def nothing_runs(*given, **more):
    """Stand for the execution of runs, which takes longer than a fuzzer waits."""
    yield from ()
