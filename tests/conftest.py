"""Fixtures that several test files use."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from mtlprune_bench.commands import run_cli

# Tests run in two processes on two cores; threads of one would only slow the other down.
torch.set_num_threads(1)

# Event files of every run, in every process, would take longer than the runs; the observer's own tests want them.
os.environ["MTLBENCH_BLOCKED"] = "observers.tensorboard"

# What a shell starts in the background ignores interrupts, and so do its children; tests interrupt some.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory, monkeypatch):
    """Give every test the environment of a user who has set nothing, and one cache for the whole session."""
    for name in ("MTLBENCH_DATA", "MTLBENCH_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("mtlprune_bench.data.locate.USUAL", ("data", "datasets"))
    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    monkeypatch.setenv("MTLBENCH_CACHE", str(session / "cache"))


@pytest.fixture(scope="session")
def samples_folder():
    """Return the folder of real samples; skip where there is none."""
    folder = Path(os.environ.get("MTLBENCH_SAMPLES", Path(__file__).parents[1].parent / "shared" / "samples"))
    if not folder.is_dir():
        pytest.skip("no real samples here; MTLBENCH_SAMPLES names their folder")
    return folder


class Answer(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def mtlbench(capsys, tmp_path, monkeypatch):
    """Return a function that runs `mtlbench` in an empty folder, on a wide terminal, and returns its answer."""
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = run_cli(list(arguments))
        return Answer(code, *capsys.readouterr())

    return run
