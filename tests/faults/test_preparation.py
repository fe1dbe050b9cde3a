"""Preparation: shards and generated scenes whose making is killed at any line are made again to the bit."""

import random
import shutil

import numpy as np
import pytest
import torch
from points import Tally, chosen, points_of

from mtlprune_bench import Sample
from mtlprune_bench.data.locate import locate
from mtlprune_bench.data.prepared import prepare, verify_prepared
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.datasets.scenes.cache import Plan, load

HEIGHT, WIDTH = 6, 8
PLAN = Plan(height=16, width=16, train=2, validation=1, test=1)


def photograph(number):
    """Return an image and its labels, all random."""
    rng = np.random.default_rng(number)
    vectors = rng.normal(size=(3, HEIGHT, WIDTH))
    targets = {
        "segmentation": torch.from_numpy(rng.integers(0, 40, (HEIGHT, WIDTH))),
        "normals": torch.from_numpy((vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32)),
        "depth": torch.from_numpy(rng.uniform(0.5, 9, (1, HEIGHT, WIDTH)).astype(np.float32)),
    }
    image = torch.from_numpy(rng.integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8))
    return Sample.of(image, targets, dict.fromkeys(targets, torch.ones(HEIGHT, WIDTH, dtype=torch.bool)))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Return a dataset and where its files are, which were written for it."""
    dataset = load_registry().get("datasets", "nyuv2-3task")
    root = tmp_path_factory.mktemp("nyuv2")
    dataset.files.layouts[0].write(root, {"train": [*map(photograph, range(4))], "test": [photograph(4)]})
    return dataset, locate(dataset.files, root)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Let a shard hold two images."""
    monkeypatch.setattr("mtlprune_bench.data.shards.SHARD_BYTES", 2 * 3 * HEIGHT * WIDTH)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill(tally, action, made, folder, count, seed):
    """Kill `action(place)` at `count` lines, each in a place of its own; it leaves its files in `made(place)`."""
    (folder / "whole").mkdir(parents=True)
    stages = points_of(lambda: action(folder / "whole"), folder / "whole")
    rng = random.Random(seed)
    for number, at in enumerate(chosen(stages, count, rng)):
        place = folder / f"killed-{number}"
        for line in (at, rng.randrange(1, len(stages))):
            tally.child(lambda place=place: action(place), place, line)
        action(place)
        assert files(made(place)) == files(made(folder / "whole"))
        shutil.rmtree(place)


def campaign(tally, photographs, folder, count, seed):
    """Kill the making of shards, and of scenes."""
    dataset, found = photographs

    def shards(place):
        prepare(dataset, found, place / "shards", 1, lambda size: None)

    kill(tally, shards, lambda place: place / "shards", folder / "photographs", count, seed)
    shard = folder / "photographs" / "whole" / "shards"
    assert verify_prepared(shard) == []
    kill(tally, lambda place: load(PLAN, place), lambda place: place / PLAN.name, folder / "scenes", count, seed)


def test_preparation_killed_at_any_line_is_made_again_to_the_bit(photographs, tmp_path):
    tally = Tally("preparation")
    campaign(tally, photographs, tmp_path, count=4, seed=0)
    assert sum(tally.killed.values()) >= 8


@pytest.mark.faults
def test_preparation_killed_at_many_lines_is_made_again_to_the_bit(photographs, tmp_path, capsys):
    tally = Tally("preparation of data")
    campaign(tally, photographs, tmp_path, count=60, seed=1)
    tally.tell(capsys)
    assert tally.killed["data preparation"] >= 50
