"""Real images are learned by heart: what is wrong in reading, training or measuring them would show."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

from mtlprune_bench import STANDARD
from mtlprune_bench.commands import run_cli
from mtlprune_bench.data.locate import locate
from mtlprune_bench.data.photos import open_photos
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.store import Store, read_rows

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def learned(dataset, root, store, capsys, *settings):
    """Return what a dense network reaches on the images that it was trained on, by task and metric."""
    config = str(BENCHMARKS / f"overfit-{dataset}.toml")
    more = [word for setting in settings for word in ("--set", setting)]
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # to be printed, as for a user
        assert run_cli(["run", "--config", config, "--data-root", str(root), "--store", str(store), *more]) == 0
    assert "Results on them measure memory" in capsys.readouterr().err
    (folder,) = Store(store).runs()
    return {(row["task"], row["metric"]): row["value"] for row in read_rows(folder) if row["split"] == "test"}


@pytest.mark.slow
def test_a_photograph_of_nyu(samples_folder, tmp_path, capsys):
    """One of them, which takes half the time; docs/data.md has what two reach."""
    names = ["img/0061.png", "seg/0061.png", "normal_mask/0061.png", "depth/0061.npy"]
    root = tmp_path / "nyuv2"
    for name in names:
        (root / name).parent.mkdir(parents=True)
        shutil.copy(samples_folder / "nyuv2_adashare" / name, root / name)
    (root / "nyu_v2_3task.json").write_text(json.dumps({"train": [names], "test": [names]}))
    quick = ("train.batch=1", "train.steps=460", "train.lr_decay_every=150")
    reached = learned("nyuv2", root, tmp_path / "runs", capsys, *quick)
    assert reached["segmentation", "mean_iou"] > 0.8
    assert reached["normals", "mean_angle"] < 8


@pytest.mark.slow
def test_a_view_of_taskonomy(samples_folder, tmp_path, capsys):
    root = samples_folder / "taskonomy_style"
    reached = learned("taskonomy", root, tmp_path / "runs", capsys)
    assert reached["segmentation", "mean_iou"] > 0.8
    dataset = load_registry().get("datasets", "taskonomy")
    found = locate(dataset.files, root)
    with pytest.warns(UserWarning, match="measure memory"):
        targets = open_photos(dataset, found.layout, found.root, STANDARD).test[0].targets
    for task in ("keypoints", "edges"):
        constant = (targets[task] - targets[task].median()).abs().mean()
        assert reached[task, "error"] < constant / 2, "half of the best constant's"
