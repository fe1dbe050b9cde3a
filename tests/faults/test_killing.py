"""Killing: a process that dies at any line leaves nothing damaged, and the same command ends as if it had not."""

import random
import shutil

import pytest
from points import Points, Tally, chosen, interrupt, points_of
from results import contents, damaged, finish, registry, request

METHODS = [
    *("adapmtl", "adapmtl-single-threshold", "dense", "dense-single-task", "dense-small", "disparse-dynamic"),
    *("disparse-pretrained", "disparse-static", "gmp", "grasp", "imp", "lth", "lth-iterative", "magnitude"),
    *("random", "random-erk", "random-pretrained", "rigl", "set", "snip", "str", "synflow"),
]
SHORT = ("magnitude", "rigl")
"""The methods of the ordinary suite: one with two stages, one whose masks change."""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory):
    found = registry()
    finish(tmp_path_factory.mktemp("first"), found, request("random"))  # so that children need import nothing
    return found


def test_every_method_is_among_those_that_are_killed(plugins):
    assert [entry.name for entry in plugins.of_kind("methods")] == METHODS


def campaign(tally, plugins, method, folder, count, seed):
    """Kill a run of `method` at `count` lines, and often once more when it is taken up again."""
    asked, rng = request(method), random.Random(f"{method} {seed}")

    def carry_out(store):
        finish(store, plugins, asked)

    stages = points_of(lambda: carry_out(folder / "whole"), folder / "whole")
    whole = contents(folder / "whole")
    for number, at in enumerate(chosen(stages, count, rng)):
        store = folder / f"killed-{number}"
        for line in (at, rng.randrange(1, len(stages))):
            tally.child(lambda store=store: carry_out(store), store, line)
            assert damaged(store) == []
        carry_out(store)
        assert contents(store) == whole, f"{method}, killed at line {at}"
        shutil.rmtree(store)


@pytest.mark.parametrize("method", SHORT)
def test_a_run_killed_at_any_line_ends_as_if_it_had_not_been(method, plugins, tmp_path):
    tally = Tally(method)
    campaign(tally, plugins, method, tmp_path, count=3, seed=0)
    assert sum(tally.killed.values()) >= 3


@pytest.mark.faults
def test_runs_of_all_methods_killed_at_any_line_end_as_if_they_had_not_been(plugins, tmp_path, capsys):
    tally = Tally(f"{len(METHODS)} methods")
    for method in METHODS:
        campaign(tally, plugins, method, tmp_path / method, count=5, seed=1)
    tally.tell(capsys)
    assert sum(tally.killed.values()) >= 100
    assert {"training", "checkpoint write", "mask write", "row write", "scoring"} <= set(tally.killed)


def interrupted(plugins, method, folder, count, seed):
    """Interrupt a run of `method` at `count` lines, all in this process; return how many it came to."""
    asked, rng, met = request(method), random.Random(f"{method} {seed}"), 0
    stages = points_of(lambda: finish(folder / "whole", plugins, asked), folder / "whole")
    whole = contents(folder / "whole")
    for number, at in enumerate(chosen(stages, count, rng)):
        store = folder / f"interrupted-{number}"
        try:
            with Points(at, interrupt):
                finish(store, plugins, asked)
        except KeyboardInterrupt:
            met += 1
        assert damaged(store) == []
        finish(store, plugins, asked)
        assert contents(store) == whole, f"{method}, interrupted at line {at}"
        shutil.rmtree(store)
    return met


def test_a_run_interrupted_at_any_line_ends_as_if_it_had_not_been(plugins, tmp_path):
    assert interrupted(plugins, "rigl", tmp_path, count=3, seed=0) >= 2


@pytest.mark.faults
def test_runs_interrupted_at_hundreds_of_lines_end_as_if_they_had_not_been(plugins, tmp_path, capsys):
    methods = ("magnitude", "rigl", "snip", "lth-iterative", "adapmtl")
    met = sum(interrupted(plugins, method, tmp_path / method, count=60, seed=1) for method in methods)
    with capsys.disabled():
        print(f"\n{len(methods)} methods: {met} interrupts (KeyboardInterrupt) at any line")
    assert met >= 200
