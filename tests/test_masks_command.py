"""`mtlbench masks`: what it prints is what the masks hold, and what it cannot look at it says in one line."""

import csv
import dataclasses
import io
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

from mtlprune_bench.analysis import sources as mask_sources
from mtlprune_bench.analysis.overlap import Trunk, pair_overlaps, task_overlaps
from mtlprune_bench.analysis.sources import TaskMasks, masks_before_training
from mtlprune_bench.analysis.views import comma_separated, task_records, task_tables
from mtlprune_bench.commands import run_cli
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.pruning.components import Components
from mtlprune_bench.results.render import plain
from mtlprune_bench.runs.experiment import prepare
from mtlprune_bench.runs.opening import open_dataset
from mtlprune_bench.runs.pipeline import START_MASKS
from mtlprune_bench.runs.request import Request
from mtlprune_bench.store import Store, read_json, read_rows, write_json, write_rows
from mtlprune_bench.training.checkpoint import MASKS, load_masks, save_masks

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
OWN = ("--plugin", PLUGIN)
TOY = (*OWN, "--dataset", "toy")
STATIC = ("--method", "disparse-static", "--set", "method.score.batches=2")
BEFORE = ("masks", "--before-training", *TOY, *STATIC)
FIXED = ("--set", "method.calibration=fixed-ratio", "--set", "method.calibration.ties=index")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store with a dense run, two methods, one of them with its scores kept, and a wider network."""
    folder = tmp_path_factory.mktemp("store")
    common = (*TOY, "--set", "train.steps=2", "--store", str(folder))
    assert run_cli(["run", *common, "--method", "random,dense"]) == 0
    assert run_cli(["run", *common, *STATIC, "--sparsity", "0.5,0.8"]) == 0
    assert run_cli(["run", *common, *STATIC, *FIXED, "--sparsity", "0.7"]) == 0
    assert run_cli(["run", *common, "--method", "random", "--sparsity", "0.7", "--set", "model.width=8"]) == 0
    return folder


def records(text):
    """Return the values of a CSV answer by what they are of."""
    rows = list(csv.DictReader(io.StringIO(text)))
    values = {
        (row["run"], row["of"], row["component"], row["layer"], row["measure"]): float(row["value"])
        for row in rows
    }
    assert len(values) == len(rows), "every record is of something else"
    return values


def masks_of(store, name):
    folder = Store(store).find(name)
    return folder.name, load_masks(folder / MASKS)


def refused(answer, *texts):
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.startswith("Error: ")
    assert answer.err.count("\n") == 1, answer.err
    assert all(text in answer.err for text in texts), answer.err


# Stored runs


def test_densities_and_overlap_of_runs_are_those_of_their_masks(mtlbench, store):
    names = ("disparse-static-toy-0.8", "disparse-static-toy-0.5")
    answer = mtlbench("masks", *OWN, *names, "--store", str(store), "--format", "csv")
    assert answer.code == 0, answer.err
    found = records(answer.out)
    (one, masks), (other, others) = (masks_of(store, name) for name in names)
    trunk, head = "trunk.0.weight", "heads.normals.1.weight"
    assert found[one, "", "shared", trunk, "density"] == pytest.approx(float(masks[trunk].double().mean()))
    assert found[other, "", "normals", head, "density"] == pytest.approx(float(others[head].double().mean()))
    assert found[one, "", "normals", "", "density"] == found[one, "", "normals", head, "density"]
    assert found[one, "", "whole", "", "density"] == pytest.approx(0.2, abs=1e-3)
    flat = [torch.cat([mask.flatten() for mask in own.values()]) for own in (masks, others)]
    assert found[one, other, "whole", "", "iou"] == pytest.approx(jaccard_score(*flat))
    shared = [torch.cat([own[name].flatten() for name in own if "trunk" in name]) for own in (masks, others)]
    assert found[one, other, "shared", "", "iou"] == pytest.approx(jaccard_score(*shared))
    assert found[one, other, "shared", trunk, "iou"] == pytest.approx(
        jaccard_score(masks[trunk].ravel(), others[trunk].ravel())
    )
    first, second = (float(own[trunk].double().mean()) for own in (masks, others))
    chance = first * second / (first + second - first * second)
    assert found[one, other, "shared", trunk, "iou by chance"] == pytest.approx(chance)


def test_the_tables_say_the_same_in_percent(mtlbench, store):
    names = ("random-toy-0.9", "disparse-static-toy-0.8")
    answer = mtlbench("masks", *OWN, *names, "--store", str(store))
    (one, masks), (other, _) = (masks_of(store, name) for name in names)
    found = records(mtlbench("masks", *OWN, *names, "--store", str(store), "--format", "csv").out)
    whole, shared = (f"{100 * found[one, '', part, '', 'density']:.2f}" for part in ("whole", "shared"))
    assert re.search(rf"│ 1 │ {one} +│ {whole} +│ {shared} ", answer.out)
    layer, weights = "heads.segmentation.1", f"{masks['heads.segmentation.1.weight'].numel():,}"
    assert re.search(rf"│ {layer} +│ segmentation │ {weights} +│", answer.out)
    iou, chance = (100 * found[one, other, "whole", "", measure] for measure in ("iou", "iou by chance"))
    assert f"│ 1 and 2 │ {iou:.2f} ({chance:.2f})" in answer.out


def test_one_run_has_no_overlap_and_is_shown_once_however_often_it_is_named(mtlbench, store):
    answer = mtlbench("masks", *OWN, "random-toy-0.9", masks_of(store, "random-toy-0.9")[0], "--store", str(store))
    assert answer.code == 0
    assert "density by layer" in answer.out
    assert "overlap" not in answer.out


def test_a_picture_of_runs_can_be_opened(mtlbench, store):
    options = ("--store", str(store), "--output", "masks.png")
    answer = mtlbench("masks", *OWN, "random-toy-0.9", "disparse-static-toy-0.8", *options)
    assert "Wrote masks.png" in answer.err
    with Image.open("masks.png") as picture:
        assert min(picture.size) > 400
        assert len(picture.convert("L").getcolors(1 << 16)) > 20


def test_what_has_no_masks_is_refused(mtlbench, store):
    refused(mtlbench("masks", *OWN, "dense-toy", "--store", str(store)), "dense-toy-0-s0", "has no masks")
    refused(mtlbench("masks", *OWN, "nothing", "--store", str(store)), "Unknown run 'nothing'")


def test_runs_of_different_networks_are_not_compared(mtlbench, store):
    names = ("disparse-static-toy-0.8", "random-toy-0.7")
    refused(mtlbench("masks", *OWN, *names, "--store", str(store)), "different networks", *names)
    assert mtlbench("masks", *OWN, names[1], "--store", str(store)).code == 0


def test_a_network_that_is_built_otherwise_now_is_refused(mtlbench, store, tmp_path):
    run, masks = masks_of(store, "random-toy-0.9")
    copy = Store(tmp_path / "copy").run_folder(run)
    write_json(copy / "config.json", read_json(store / run / "config.json"))
    save_masks(copy / MASKS, masks | {"trunk.0.weight": torch.ones(3, 3, 3, 3, dtype=torch.bool)})
    refused(mtlbench("masks", *OWN, run, "--store", "copy"), run, "not those of the network")


def test_settings_and_a_stand_in_are_named(mtlbench, store, tmp_path):
    run, _ = masks_of(store, "random-toy-0.9")
    copy = tmp_path / "copy" / run
    shutil.copytree(store / run, copy)
    write_rows(copy, [row | {"stand_in": True, "settings": "control=shuffled"} for row in read_rows(copy)])
    assert f"{run} (control=shuffled) STAND-IN" in mtlbench("masks", *OWN, run, "--store", "copy").out
    assert "STAND-IN" not in mtlbench("masks", *OWN, run, "--store", str(store)).out


# Before training


def test_tasks_masks_merge_to_those_that_the_run_starts_with(mtlbench, store):
    answer = mtlbench(*BEFORE, *FIXED, "--sparsity", "0.7", "--format", "csv", "--set", "train.steps=2")
    assert answer.code == 0, answer.err
    found = records(answer.out)
    folder = Store(store).find("disparse-static-toy-0.7")
    start = load_masks(folder / START_MASKS)
    for name, mask in start.items():
        task = next((task for task in ("segmentation", "normals") if task in name), None)
        kept = {key[1]: value * mask.numel() for key, value in found.items() if key[3:] == (name, "density")}
        assert {key[0] for key in found} == {folder.name}
        if task:
            assert kept == {task: pytest.approx(int(mask.sum()))}
        else:
            # What both keep and what any keeps, from the sum of the two and their ratio.
            union = sum(kept.values()) / (1 + found[folder.name, "all tasks", "shared", name, "iou"])
            assert union == pytest.approx(int(mask.sum()))


def test_each_task_keeps_as_much_of_what_it_uses_as_asked(mtlbench):
    answer = mtlbench(*BEFORE, "--sparsity", "0.8", "--format", "csv")
    rows = [row for row in csv.DictReader(io.StringIO(answer.out)) if row["measure"] == "density" and row["layer"]]
    for task in ("segmentation", "normals"):
        own = [(int(row["weights"]), float(row["value"])) for row in rows if row["of"] == task]
        total = sum(weights for weights, _ in own)
        assert sum(weights * density for weights, density in own) == pytest.approx(total // 5)


def test_tables_have_layers_agreement_and_a_suggestion_with_its_cost(mtlbench):
    text = mtlbench(*BEFORE, "--sparsity", "0.8").out
    assert "toy, toy-net, disparse-static (score.batches=2), sparsity 0.8, seed 0" in text
    assert re.search(r"│ shared +│ 2,736 +│ \d+\.\d\d +│ \d+\.\d\d +│ \d+\.\d\d │ \d+\.\d\d", text)
    assert re.search(r"│ trunk\.3 +│ 1 +│ shared +│ 2,304 ", text)
    assert re.search(r"│ heads\.normals\.1 +│ +│ normals +│ 48 +│ – ", text)
    assert "a suggestion: nothing was trained" in text
    found = records(mtlbench(*BEFORE, "--sparsity", "0.8", "--format", "csv").out)
    (layer,) = {key[3] for key in found if key[4] == "branch: weights more"}
    (more,) = {int(value) for key, value in found.items() if key[4] == "branch: weights more"}
    assert (layer, more) == ("trunk.3.weight", 2304), "the second of two layers, copied once for two tasks"
    assert re.search(rf"watershed.*│ 1 trunk\.3 .*│ {more:,} \(\+", text)


def test_three_tasks_are_compared_two_by_two():
    kept = torch.tensor([True, True, False, False])
    components = Components({"root.weight": ("a", "b", "c"), "head.weight": ("c",)}, ("a", "b", "c"))
    masks = {"a": {"root.weight": kept}, "b": {"root.weight": kept.flip(0)}}
    masks["c"] = {"root.weight": kept, "head.weight": kept | True}
    overlaps, trunk = task_overlaps(masks, components), Trunk({"root.weight": 1}, ("root.weight",))
    found = TaskMasks("run", "label", components, overlaps, pair_overlaps(masks), trunk)
    (_, whole, _), (_, layers, _), (_, pairs, _), (title, branches, _) = task_tables(found)
    assert whole[0] == ["shared", "4", "50.00", "50.00", "50.00", "0.00", "14.29"]  # by chance 1/8 of 7/8
    assert layers[1] == ["head", "", "c", "4", "–", "–", "100.00", "–", "–"]
    assert pairs == [["a and b", "0.00", "33.33"], ["a and c", "100.00", "33.33"], ["b and c", "0.00", "33.33"]]
    assert [row[:4] for row in branches] == [["IoU stays below 10 %", "0 root", "–", "0.00"]]
    assert branches[0][4:] == ["8 (+100.0 %)", "2 (+25.0 %)"], "6 kept by three copies for 4 by one, of 8 kept"
    assert "suggestion" in title
    assert records(comma_separated(task_records(found)))["run", "a and c", "", "", "iou"] == 1.0


def test_a_label_says_what_was_scored_and_a_stand_in_is_named(tmp_path):
    registry = load_registry((PLUGIN,))
    request = Request(method="disparse-static", dataset="toy", sparsity=0.75, seed=3)
    opened = open_dataset(request, registry)
    for stand_in, data in ((False, "toy"), (True, "toy STAND-IN")):
        experiment = prepare(request, registry, dataclasses.replace(opened, stand_in=stand_in))
        found = masks_before_training(experiment, Store(tmp_path), registry)
        assert found.label == f"{data}, toy-net, disparse-static, sparsity 0.75, seed 3"


def test_weights_that_are_kept_for_their_place_are_noted(mtlbench, monkeypatch):
    real = mask_sources.scores_of

    def blind(*arguments):
        scores = real(*arguments)
        scores["normals"]["trunk.3.weight"].zero_()
        return scores

    assert "lowest score" not in mtlbench(*BEFORE, "--sparsity", "0.5").err
    monkeypatch.setattr(mask_sources, "scores_of", blind)
    answer = mtlbench(*BEFORE, "--sparsity", "0.5")
    # Of its 2784 weights 480 have a score, and half of all are kept.
    assert "normals keeps 1,392 weights, of which 912 have the lowest score" in answer.err
    assert "segmentation keeps" not in answer.err


def test_where_nothing_falls_for_good_no_branch_is_suggested():
    kept = torch.tensor([True, False])
    components = Components({"root.weight": ("a", "b")}, ("a", "b"))
    masks = {task: {"root.weight": kept} for task in "ab"}
    trunk = Trunk({"root.weight": 1}, ("root.weight",))
    found = TaskMasks("run", "label", components, task_overlaps(masks, components), pair_overlaps(masks), trunk)
    *_, (title, rows, headings) = task_tables(found)
    assert plain(title, rows, headings).endswith("(a suggestion: nothing was trained): none\n")


def test_nothing_is_written_and_kept_scores_are_used(mtlbench, store, monkeypatch, tmp_path):
    options = (*BEFORE, "--sparsity", "0.9", "--set", "train.steps=2", "--format", "csv")
    fresh = mtlbench(*options)
    assert list(tmp_path.iterdir()) == []
    before = sorted(store.rglob("*"))

    def no_scoring(*_):
        raise AssertionError("scores were made again")

    monkeypatch.setattr(mask_sources, "scores_of", no_scoring)
    assert mtlbench(*options, "--store", str(store)).out == fresh.out
    assert sorted(store.rglob("*")) == before


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_of_several_requests_has_a_line_for_each(mtlbench, ending):
    name = f"iou.{ending}"
    answer = mtlbench(*BEFORE, "--sparsity", "0.5,0.8", "--output", name)
    assert answer.code == 0, answer.err
    content = Path(name).read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    if ending == "svg":
        # Letters are drawn as shapes, with a comment for each text.
        text = content.decode()
        assert all(f"sparsity {value}, seed 0" in text for value in (0.5, 0.8))
        assert text.count("; watershed at layer 1 -->") == 2
        assert "<!-- trunk.3  1 -->" in text


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (("--method", "snip"), ("for all tasks together", "--scope per-task --arbiter or")),
        (("--method", "dense"), ("'dense' scores no weights before training",)),
        (("--method", "adapmtl"), ("'adapmtl' scores no weights before training",)),
        (("--method", "disparse-pretrained"), ("scores trained weights",)),
        (("--method", "disparse-dynamic"), ("'noise'", "does not look at tasks", "--score")),
        (("--method", "synflow", "--scope", "per-task", "--arbiter", "or"), ("rounds", "method.rounds=1")),
        ((*STATIC, "--dataset", "toy-single"), ("'toy-single' has one task",)),
    ],
)
def test_methods_without_masks_of_each_task_are_refused(mtlbench, options, texts):
    refused(mtlbench("masks", "--before-training", *TOY, *options), *texts)


def test_a_method_for_all_tasks_together_can_be_asked_for_each(mtlbench):
    answer = mtlbench(
        "masks", "--before-training", *TOY, "--method", "snip", "--scope", "per-task", "--arbiter", "or"
    )
    assert answer.code == 0, answer.err
    assert "snip (scope=per-task arbiter=or)" in answer.out


def test_what_makes_no_sense_together_is_refused(mtlbench, store):
    refused(mtlbench("masks"), "--before-training")
    refused(mtlbench(*BEFORE, "random-toy"), "not both")
    refused(
        mtlbench("masks", "random-toy", "--sparsity", "0.5", "--method", "snip"),
        "--method, --sparsity: runs are as they were made",
    )
    refused(mtlbench("masks", "random-toy", "--output", "masks.txt"), "masks.txt", ".pdf, .svg, .png")
