"""Published numbers: what the papers print is kept as printed, and set beside ours only where that is fair."""

import csv
import math
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from tables import frame

from mtlprune_bench.commands import run_cli
from mtlprune_bench.paradigms import PARADIGMS, paradigm
from mtlprune_bench.results.comparisons import Column, comparisons
from mtlprune_bench.results.deltas import ADAPMTL, by_task, change, whole
from mtlprune_bench.results.published import beside, doubts, printed, why_not
from mtlprune_bench.results.render import footnotes, render
from mtlprune_bench.results.views import parse_filter, pivoted
from mtlprune_bench.runs.config import override
from mtlprune_bench.runs.experiment import configure_method, differences
from mtlprune_bench.store import SPARSITY

SUITES = Path(__file__).parents[1] / "benchmarks"
SUITE_OF = {
    ("DiSparse (CVPR 2022)", "table 1"): "nyuv2",
    ("DiSparse (CVPR 2022)", "table 2"): "cityscapes",
    ("DiSparse (CVPR 2022)", "table 3"): "taskonomy",
    ("DiSparse (CVPR 2022)", "table 4"): "ablation-arbiters",
    ("AdapMTL (MM 2024)", "table 2"): "adapmtl-nyuv2",
}
ADAPMTL_ROWS = [row for row in printed() if row.paper == "AdapMTL (MM 2024)"]
HIGHER = ("mean_iou", "pixel_accuracy", "within_", "delta_")

REAL = {
    "dataset": "nyuv2",
    "data": "NYU-v2",
    "protocol": "disparse",
    "model": "deeplab-resnet34",
    "recipe": "20000 steps, batch 16, crop 321 [abcdef]",
    "metric": "mean_iou",
    "task": "segmentation",
    "sparsity": 0.9,
}
LTH = REAL | {"method": "lth"}


def table(*changes):
    (found,) = comparisons(frame(*changes))
    return found


def cells(row):
    """Return a row's metrics as printed, by task."""
    found = {}
    for heading, text in row.texts.items():
        task, _, name = heading.partition(" ")[0].partition(".")
        if name and name not in ("delta", SPARSITY):
            found.setdefault(task, {})[name] = float(text)
    return found


def test_every_table_is_there_with_as_many_rows_as_in_print():
    counts = {}
    for row in printed():
        counts[row.paper, row.table] = counts.get((row.paper, row.table), 0) + 1
    assert list(counts.values()) == [7, 10, 10, 10, 2]
    assert set(counts) == set(SUITE_OF)


@pytest.mark.parametrize("row", ADAPMTL_ROWS, ids=lambda row: row.name)
def test_the_deltas_of_adapmtl_follow_from_its_metrics(row):
    base = cells(ADAPMTL_ROWS[0])
    changes = {
        task: [change(value, base[task][name], name.startswith(HIGHER)) for name, value in metrics.items()]
        for task, metrics in cells(row).items()
    }
    found = {f"{task}.delta %": 100 * value for task, value in by_task(changes, ADAPMTL).items()}
    found["delta %"] = 100 * whole(changes, ADAPMTL)
    assert [len(values) for values in changes.values()] == [2, 5, 5]
    printed_ones = {heading: float(text) for heading, text in row.texts.items() if heading.endswith("delta %")}
    assert len(printed_ones) == 4
    assert found == {heading: pytest.approx(value, abs=0.01) for heading, value in printed_ones.items()}


def test_the_first_row_of_adapmtl_is_its_base():
    assert (ADAPMTL_ROWS[0].name, ADAPMTL_ROWS[0].sparsity) == ("Dense model", 0.0)
    assert len(ADAPMTL_ROWS) == 7


def test_the_sparsity_of_adapmtl_is_that_of_its_components():
    # Prunable weights of its MobileNetV2 and of its three heads.
    counts = {"shared": 2_189_760, "segmentation": 51_544_064, "normals": 51_392_512, "depth": 51_384_320}
    for row in ADAPMTL_ROWS[1:]:
        parts = [count * row.value(Column(SPARSITY, component=name)) for name, count in counts.items()]
        assert sum(parts) / sum(counts.values()) == pytest.approx(row.sparsity, abs=1e-3)


def test_every_number_is_read_and_every_unit_is_known():
    for path in (files("mtlprune_bench") / "results" / "papers").iterdir():
        head, *_ = csv.reader(path.read_text().splitlines())
        assert all(re.fullmatch(r"[\w.]+( %| degree)?", name) for name in head)
    for row in printed():
        assert all(math.isfinite(float(text)) for text in row.texts.values())
        assert row.paradigm in PARADIGMS
        assert (row.paradigm == "baseline") == (row.sparsity == 0)


def test_percentages_are_fractions_and_angles_are_degrees():
    dense = next(row for row in printed() if row.dataset == "nyuv2")
    assert dense.value(Column("mean_iou", task="segmentation", split="test", unit="fraction")) == pytest.approx(
        0.2769
    )
    assert dense.value(Column("mean_angle", task="normals", split="test", unit="degree")) == 16.55
    assert dense.value(Column("mean_iou", task="segmentation", split="train")) is None
    assert dense.value(Column("steps")) is None
    cityscapes = next(row for row in printed() if row.dataset == "cityscapes")
    assert cityscapes.value(Column("relative_error", task="depth", split="test")) == 0.33


@pytest.fixture(scope="module")
def registry():
    from mtlprune_bench.host.registry import load_registry

    return load_registry()


def cells_of(suite):
    """Yield method, settings of methods and model, and settings of the model, of what a suite file runs."""
    document = tomllib.loads((SUITES / f"{suite}.toml").read_text())
    for grid in document.get("grid", [{}]):
        own = document["run"] | grid
        methods = own["method"] if isinstance(own["method"], list) else [own["method"]]
        for method in methods:
            changes = document.get("methods", {}).get(method, {}) | own.get("settings", {}).get("method", {})
            for arbiter in own.get("vary", {}).get("method.arbiter", [None]):
                more = {} if arbiter is None else {"arbiter": arbiter}
                yield own, method, changes | more


@pytest.mark.parametrize(("paper", "suite"), SUITE_OF.items(), ids=lambda value: str(value))
def test_the_suite_of_a_paper_makes_the_runs_that_its_rows_are_set_beside(registry, paper, suite):
    made = set()
    for own, name, changes in cells_of(suite):
        method = registry.get("methods", name)
        dataset = registry.get("datasets", own["dataset"])
        model = registry.get("models", own.get("model", dataset.model))
        settings = override(model.settings, own.get("settings", {}).get("model", {}), "model")
        words = differences(model.settings, settings, "model.")
        recipe = f"{dataset.train.steps} steps, batch {dataset.train.batch}, crop {dataset.train.crop}"
        text = f"{model.name} ({words})" if words else model.name
        changed = differences(method, configure_method(method, changes, registry))
        made.add((own["dataset"], text, recipe, name, changed))
    for row in printed():
        if (row.paper, row.table) == paper:
            assert (row.dataset, row.model, row.recipe, row.method, row.settings) in made, row.source


def test_methods_are_of_the_paradigm_of_the_paper(registry):
    from dataclasses import asdict

    from mtlprune_bench.runs.config import describe

    for row in printed():
        method = registry.get("methods", row.method)
        recipe = registry.get("datasets", row.dataset).train
        updates = [] if row.paradigm == "learned" else method.schedule.plan(row.sparsity or 0.9, recipe)
        assert paradigm(describe(method), [asdict(update) for update in updates]) == row.paradigm, row.source


def test_a_row_of_a_paper_stands_after_ours_and_the_difference_after_it():
    found = beside(table(LTH | {"value": 0.25}, LTH | {"seed": 1, "value": 0.27}))
    (column,) = found.columns
    by_source = {line.source: line for line in found.lines if line.method == "lth"}
    assert [line.source for line in found.lines[1:4]] == list(by_source)
    values = {source: round(line.cells[column].mean, 6) for source, line in by_source.items()}
    assert values == {"": 0.26, "LTH in DiSparse (CVPR 2022), table 1": 0.2463, "difference": 0.0137}
    text = render([found], "markdown")
    assert re.search(r"\| difference +\| +90 \| +– \| +– \| +\+1.37 \|", text)


def test_rows_without_a_run_of_ours_are_listed_in_their_group_and_filters_leave_them_out():
    ours = table(LTH | {"value": 0.25})
    found = beside(ours)
    assert len(found.lines) == 1 + 10 + 1
    assert [line.paradigm for line in found.lines] == sorted(
        (line.paradigm for line in found.lines), key=PARADIGMS.index
    )
    few = beside(ours, [parse_filter("method=lth,snip")])
    assert [line.source.split(" in ")[0] for line in few.lines] == ["", "LTH", "difference", "SNIP"]


def test_other_settings_are_not_those_of_the_paper():
    found = beside(table(LTH | {"settings": "control=shuffled"}), [parse_filter("method=lth")])
    assert [line.source.split(" in ")[0] for line in found.lines] == ["", "LTH"]


def test_numbers_in_print_are_never_best_nor_ranked_nor_a_base():
    found = beside(table(LTH | {"value": 0.1}, REAL | {"method": "grasp", "value": 0.05}))
    (best,) = re.findall(r"\*\*(\d\d\.\d\d)\*\*", render([found], "markdown"))
    assert best == "10.00"


def test_deltas_in_print_have_no_difference():
    row = next(row for row in ADAPMTL_ROWS if row.method == "lth")
    real = {"dataset": row.dataset, "model": row.model, "protocol": "disparse", "recipe": row.recipe}
    real |= {"task": "segmentation", "metric": "mean_iou", "paradigm": "static"}
    dense = real | {"method": "dense", "paradigm": "baseline", "sparsity": 0.0, "value": 0.2}
    (ours,) = comparisons(frame(dense, real | {"method": "lth", "sparsity": 0.9, "value": 0.18}), [ADAPMTL])
    theirs, difference = (line for line in beside(ours).lines if line.method == "lth" and line.source)
    values = {
        f"{column.task} {column.metric}".strip(): round(cell.mean, 6) for column, cell in theirs.cells.items()
    }
    assert values == {"segmentation mean_iou": 0.1914, "segmentation delta": -0.0701, "delta": -0.0512}
    assert {column.metric: round(cell.mean, 6) for column, cell in difference.cells.items()} == {
        "mean_iou": -0.0114
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stand_in": True}, "they are of generated scenes, not of the real data"),
        ({"protocol": "standard"}, "they are measured by protocol standard, those in print by disparse"),
        ({"dataset": "toy"}, "no table of mtlbench published has toy with model deeplab-resnet34"),
        ({"model": "net"}, "no table of mtlbench published has nyuv2 with model net"),
    ],
)
def test_what_may_not_be_set_beside_a_paper_says_why(change, reason):
    ours = table(LTH | change)
    found = beside(ours)
    assert why_not(ours.setting) == reason
    assert found.lines == ours.lines
    assert f"Not set beside published numbers: {reason}." in footnotes(found)
    assert why_not(table(LTH).setting) == ""


def test_another_recipe_is_a_note():
    note = "DiSparse (CVPR 2022) has another recipe, 20000 steps, batch 16, crop 321, which may make a difference."
    assert note in beside(table(LTH | {"recipe": "200 steps, batch 8, crop 64 [123456]"})).notes
    assert note not in beside(table(LTH)).notes


def test_doubts_are_notes_that_name_their_rows():
    rows = [row for row in printed() if row.dataset == "nyuv2"]
    first, second = doubts(rows)
    assert first.startswith("Random (init), Random (pretrained) in DiSparse (CVPR 2022), table 1: mean IoU above")
    assert second.startswith("DiSparse pretrained in DiSparse (CVPR 2022), table 1: the text scores by")
    assert {first, second} <= set(beside(table(LTH)).notes)


def test_the_tables_are_listed_as_printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert run_cli(["published"]) == 0
    text = capsys.readouterr().out
    assert text.count("https://arxiv.org/abs/2206.04662") == 4
    assert re.search(r"│ SNIP +│ snip score.batches=50 +│ 90 +│ 23.83 +│ 56.9 +│", text)
    assert "- DiSparse static in DiSparse (CVPR 2022), table 3: the change printed in table 4" in text
    assert run_cli(["published", "cityscapes"]) == 0
    assert capsys.readouterr().out.count("https://arxiv.org") == 1
    assert run_cli(["published", "cityscape"]) == 2
    assert "Did you mean 'cityscapes'?" in capsys.readouterr().err


def test_a_pivot_keeps_ours_theirs_and_the_difference_together():
    found = pivoted(beside(table(LTH, REAL | {"method": "random"}), [parse_filter("method=lth,random")]))
    assert [(line.method, line.source.split(" in ")[0]) for line in found.lines] == [
        ("lth", ""),
        ("lth", "LTH"),
        ("lth", "difference"),
        ("random", ""),
        ("random", "Random (init)"),
        ("random", "difference"),
    ]
