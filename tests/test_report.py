"""`mtlbench report`: what it writes is what the store holds, whatever its texts are, and it loads nothing."""

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path

import pytest
from tables import ERROR, FAILURE, frame

from mtlprune_bench.report.page import SCRIPTS, as_json, page
from mtlprune_bench.report.provenance import command_of
from mtlprune_bench.results.comparisons import comparisons
from mtlprune_bench.results.paired import pairings
from mtlprune_bench.results.published import printed
from mtlprune_bench.runs.request import Request
from mtlprune_bench.store import Store, write_json, write_rows
from mtlprune_bench.training.checkpoint import MASKS, load_masks

PLUGIN = str(Path(__file__).parent / "toy_plugin.py")
HOSTILE = "</script><img src=x onerror=alert(1)>"

ENVIRONMENT = {
    "command": ["mtlbench", "run", "--set", "data.root=a b"],
    "commit": "c0ffee",
    "device": "cpu",
    "packages": {"torch": "2.6"},
    "started": "2030-01-02T03:04:05+00:00",
}


def stored(folder, *changes, **files):
    """Write the runs of rows that differ from the usual one by `changes`, with the JSON `files` in each."""
    rows = frame(*changes)
    for run, own in rows.groupby("run"):
        write_rows(folder / run, own.to_dict("records"))
        for name, value in ({"config": {"method": {"name": own["method"].iloc[0]}}} | files).items():
            write_json(folder / run / f"{name}.json", value)
    return rows


def seeds(method, values, **changes):
    """Return the changes of rows of a method with a value for each seed, and its sparsity."""
    name = changes.get("name", method)
    own = [
        {"method": method, "seed": seed, "run": f"{name}-{seed}", "value": value, **changes}
        for seed, value in enumerate(values)
    ]
    for change in own:
        change.pop("name", None)
    whole = {"metric": "sparsity", "task": "", "split": "", "component": "whole", "higher_is_better": None}
    asked = changes.get("sparsity", 0.5)
    return [*own, *(change | whole | {"value": asked} for change in own)]


DENSE = {"sparsity": 0.0, "paradigm": "baseline"}


def content_of(path):
    """Return what is embedded in a report."""
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(found[1])


def by_label(setting):
    return {(line["label"], line["asked"]): line for line in setting["lines"]}


def test_every_number_has_the_values_of_its_runs(mtlbench, tmp_path):
    rows = stored(tmp_path / "runs", *seeds("dense", (0.5, 0.6), **DENSE), *seeds("snip", (0.4, 0.5, 0.3)))
    answer = mtlbench("report")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("Wrote report.html: 1 setting, 5 runs, 0 failed;")
    (setting,) = content_of(tmp_path / "report.html")["settings"]
    (table,) = comparisons(rows)
    lines = by_label(setting)
    for line in table.lines:
        found = lines[line.method, line.sparsity]
        assert tuple(found["runs"]) == line.runs
        for column, cell in zip(setting["columns"], found["cells"], strict=True):
            own = next((v for c, v in line.cells.items() if c.metric == column["metric"]), None)
            if cell is None:
                assert own is None or column["metric"] == "delta" or column["metric"] == "mean_rank"
            elif column["metric"] in ("miou", "sparsity"):
                assert cell[1] == pytest.approx(own.mean)
                assert sum(cell[3]) / len(cell[3]) == pytest.approx(own.mean), "the runs' own values"
    keys = [column["key"] for column in setting["columns"]]
    snip = lines["snip", 0.5]["cells"][keys.index("seg.miou")]
    assert snip[0] == "40.00 ± 10.00"
    assert snip[3] == [0.4, 0.5, 0.3]
    assert lines["dense", 0]["cells"][keys.index("delta.mean")] is None
    assert lines["snip", 0.5]["cells"][keys.index("delta.mean")][1] == pytest.approx(0.4 / 0.55 - 1)


def test_pairs_are_those_of_compare(mtlbench, tmp_path):
    rows = stored(
        tmp_path / "runs",
        *seeds("dense", (0.5, 0.6, 0.4), **DENSE),
        *seeds("snip", (0.4, 0.5, 0.1)),
        *seeds("lth", (0.6, 0.7, 0.3)),
    )
    for options, reference in ((), "dense"), (("--reference", "lth"), "lth"):
        assert mtlbench("report", *options).code == 0
        (setting,) = content_of(tmp_path / "report.html")["settings"]
        (level,) = setting["pairs"]["levels"]
        others = [name for name in ("dense", "lth", "snip") if name != reference]
        (expected,) = pairings(rows, reference, others)
        assert level["reference"] == reference
        found = {(e["method"], setting["paired_columns"][e["column"]]["metric"]): e for e in level["effects"]}
        assert len(found) == len(expected.effects) > 2
        for effect in expected.effects:
            own = found[effect.method, effect.column.metric]
            assert (own["low"], own["high"], own["p"], own["p_holm"]) == (
                effect.low,
                effect.high,
                effect.p,
                effect.corrected,
            )
            assert own["values"] == list(effect.values)


def test_no_pairs_have_a_reason(mtlbench, tmp_path):
    stored(tmp_path / "runs", *seeds("snip", (0.4, 0.5)))
    assert mtlbench("report").code == 0
    (setting,) = content_of(tmp_path / "report.html")["settings"]
    assert setting["pairs"] == {
        "levels": [],
        "reason": "There is no dense network to compare with. Name another method by --reference.",
    }
    refused = mtlbench("report", "--reference", "sinp")
    assert refused.code == 2
    assert "Did you mean 'snip'?" in refused.err
    assert refused.err.count("\n") == 1


def test_runs_of_one_seed_are_lines_of_their_own_and_not_paired(mtlbench, tmp_path):
    twice = [change | {"seed": 0} for change in seeds("snip", (0.4, 0.5))]
    stored(tmp_path / "runs", *seeds("dense", (0.5,), **DENSE), *twice, *seeds("lth", (0.6,)))
    assert mtlbench("report").code == 0
    (setting,) = content_of(tmp_path / "report.html")["settings"]
    assert {label for label, _ in by_label(setting)} == {"dense", "lth", "snip [snip-0]", "snip [snip-1]"}
    assert setting["pairs"]["reason"] == "Left out, as several runs have one seed: snip."
    assert {effect["method"] for level in setting["pairs"]["levels"] for effect in level["effects"]} == {"lth"}


def test_provenance_is_what_the_folders_say(mtlbench, tmp_path):
    plan = {"updates": [{"step": 3, "sparsity": 0.5, "regrow": None, "restart": False}], "stages": ["scores-1"]}
    asked = {"method": "snip", "dataset": "toy", "sparsity": 0.5, "seed": 1, "protocol": "standard"}
    stored(
        tmp_path / "a" / "runs", *seeds("snip", (0.4, 0.5)), plan=plan, environment=[ENVIRONMENT], request=asked
    )
    assert mtlbench("report", "--store", "a/runs", "--output", "out/here.html").code == 0
    content = content_of(tmp_path / "out" / "here.html")
    run = content["runs"]["snip-1"]
    assert run["folder"] == "../a/runs/snip-1"
    assert (run["status"], run["seed"], run["sparsity"]) == ("finished", 1, 0.5)
    assert run["command"] == (
        "mtlbench run --method snip --dataset toy --sparsity 0.5 --seeds 2 --protocol standard"
    )
    assert content["plans"][run["plan"]] == [[[3, 0.5]], ["scores-1"]]
    assert [content["facts"][number] for number in run["facts"]] == [["method.name", "snip"]]
    (session,) = run["sessions"]
    assert session["started"] == ENVIRONMENT["started"]
    assert session["command"] == "mtlbench run --set 'data.root=a b'"
    assert content["machines"][session["machine"]] == [
        ["commit", "c0ffee"],
        ["device", "cpu"],
        ["packages.torch", "2.6"],
    ]
    assert content["runs"]["snip-0"]["facts"] == run["facts"], "what is the same is kept once"


def test_the_command_of_a_request_asks_for_it_again():
    """The command is read again by the options of mtlbench run."""
    import shlex

    import click

    from mtlprune_bench.commands._options import request_options, requests

    settings = {"method": {"score": {"name": "magnitude", "batches": "3"}}, "train": {"lr": "1e-3"}}
    request = Request(
        method="snip", dataset="toy", model="net", sparsity=0.75, seed=2, protocol="disparse", settings=settings
    )
    found = []
    reader = click.command()(request_options(lambda **options: found.extend(requests(options))))
    reader.main(shlex.split(command_of({**vars(request), "settings": settings}))[2:], standalone_mode=False)
    assert found[-1] == request
    assert [each.seed for each in found] == [0, 1, 2]
    assert command_of(None) == ""


def test_failures_and_unfinished_runs_are_listed(mtlbench, tmp_path):
    store = tmp_path / "runs"
    failed = FAILURE | {"run": "lth-0", "method": "lth", "status": "diverged", "reason": "the loss is nan"}
    stored(store, *seeds("snip", (0.4,)), failed)
    write_json(store / "grasp-0" / "config.json", {})
    answer = mtlbench("report")
    assert "2 runs, 1 failed" in answer.out
    content = content_of(tmp_path / "report.html")
    assert content["settings"][0]["failures"] == ["lth-0"]
    assert content["runs"]["lth-0"]["reason"] == "the loss is nan"
    assert content["runs"]["lth-0"]["status"] == "diverged"
    assert content["unfinished"] == ["grasp-0"]
    assert not any("lth-0" in note for note in content["settings"][0]["notes"]), "it has a list of its own"


def test_settings_stay_apart_and_filters_are_those_of_table(mtlbench, tmp_path):
    stored(
        tmp_path / "runs",
        *seeds("snip", (0.4,)),
        *seeds("snip", (0.5,), name="fake", stand_in=True),
        *seeds("lth", (0.7,)),
    )
    assert mtlbench("report").code == 0
    content = content_of(tmp_path / "report.html")
    assert [setting["facts"]["stand_in"] for setting in content["settings"]] == [False, True]
    assert content["differing"].startswith("2 tables, never averaged together, as they differ in stand-in")
    assert content["settings"][1]["published"] == [
        "Not set beside published numbers: they are of generated scenes, not of the real data."
    ]
    assert mtlbench("report", "--filter", "method=lth").code == 0
    content = content_of(tmp_path / "report.html")
    assert list(content["runs"]) == ["lth-0"]
    assert content["filters"] == ["method=lth"]
    refused = mtlbench("report", "--filter", "method=none")
    assert refused.code == 2
    assert "No results are left by the filters method=none" in refused.err
    assert mtlbench("report", "--store", "nowhere").code == 2


def test_published_numbers_stand_with_the_line_that_they_are_of(mtlbench, tmp_path):
    row = next(row for row in printed() if row.settings == "" and row.sparsity > 0 and "%" in str(row.texts))
    setting = {"dataset": row.dataset, "model": row.model, "protocol": "disparse", "recipe": row.recipe}
    segmentation = {"task": "segmentation", "metric": "mean_iou"}
    stored(tmp_path / "runs", *seeds(row.method, (0.2,), sparsity=row.sparsity, **setting, **segmentation))
    assert mtlbench("report").code == 0
    (found,) = content_of(tmp_path / "report.html")["settings"]
    line = by_label(found)[row.method, row.sparsity]
    theirs, difference = line["published"]
    at = [column["key"] for column in found["columns"]].index("segmentation.mean_iou")
    assert theirs["source"] == row.source
    assert theirs["cells"][at][1] == pytest.approx(float(row.texts["segmentation.mean_iou %"]) / 100)
    assert difference["cells"][at][1] == pytest.approx(0.2 - theirs["cells"][at][1])
    others = [line for line in found["lines"] if line["source"]]
    assert len(others) > 3, "rows of the paper without a line of ours are there, too"
    assert any(row.address in note for note in found["published"])


def test_numbers_that_are_not_finite_are_none(mtlbench, tmp_path):
    stored(tmp_path / "runs", *seeds("snip", (math.inf, 0.4)), *seeds("lth", (math.nan, 0.4)))
    assert mtlbench("report").code == 0
    (setting,) = content_of(tmp_path / "report.html")["settings"]
    at = [column["key"] for column in setting["columns"]].index("seg.miou")
    assert by_label(setting)["snip", 0.5]["cells"][at][1] is None
    assert by_label(setting)["snip", 0.5]["cells"][at][3] == [None, 0.4]


def test_the_same_store_gives_the_same_bytes(mtlbench, tmp_path):
    stored(tmp_path / "runs", *seeds("dense", (0.5,), **DENSE), *seeds("snip", (0.4,)))
    assert mtlbench("report").code == mtlbench("report", "--output", "again.html").code == 0
    assert (tmp_path / "report.html").read_bytes() == (tmp_path / "again.html").read_bytes()


# Safety


def test_no_text_of_a_store_is_markup(mtlbench, tmp_path):
    texts = {"method": HOSTILE, "settings": HOSTILE, "data": HOSTILE, "reason": HOSTILE, "task": HOSTILE}
    stored(
        tmp_path / "runs",
        *seeds("snip", (0.4,), **{name: text for name, text in texts.items() if name != "method"}),
        FAILURE | texts | {"run": "run-2", "status": "failed"},
        ERROR | {"run": "run-3", "method": HOSTILE},
        environment=[ENVIRONMENT | {"commit": HOSTILE, "command": [HOSTILE]}],
        request={"method": HOSTILE, "dataset": "toy", "sparsity": 0.5, "seed": 0, "protocol": HOSTILE},
    )
    assert mtlbench("report").code == 0
    text = (tmp_path / "report.html").read_text()
    assert "onerror" in text
    assert "<img" not in text
    assert text.count("</script") == 2, "of the content and of the script, and no other"
    content = content_of(tmp_path / "report.html")
    assert content["runs"]["run-2"]["reason"] == HOSTILE
    assert content["settings"][0]["facts"]["data"] == HOSTILE or content["settings"][1]["facts"]["data"] == HOSTILE


def test_content_survives_being_embedded():
    value = {"a": HOSTILE, "b": "%SCRIPT% %CONTENT% &amp; \u2028 ü \ud800", "c": [1.5, None]}
    assert json.loads(as_json(value)) == value
    assert not set("<>&") & set(as_json(value))
    with pytest.raises(ValueError, match="Out of range"):
        as_json({"a": math.nan})
    text = page(value)
    assert json.loads(re.search(r'id="content">(.*?)</script>', text)[1]) == value


def test_the_policy_forbids_to_load_anything_and_names_this_script():
    text = page({})
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    for part, kind in (script, "script-src"), (style, "style-src"):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"
    assert set(rules) == {"default-src", "script-src", "style-src", "base-uri", "form-action"}


def test_the_script_makes_no_markup_and_names_no_address():
    folder = Path(__file__).parent.parent / "mtlprune_bench" / "report" / "template"
    assert {path.name for path in folder.glob("*.js")} == set(SCRIPTS)
    text = "".join(path.read_text() for path in folder.iterdir())
    addresses = set(re.findall(r"https?://[^\"' ]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a kind of element, which nothing loads"
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
        assert word not in text


# Real runs


def test_densities_by_layer_are_those_of_the_masks(mtlbench, tmp_path):
    options = ("--plugin", PLUGIN, "--store", "runs")
    made = ("--dataset", "toy", "--set", "train.steps=2", "--set", "method.score.batches=1")
    assert mtlbench("run", *options, *made, "--method", "snip", "--sparsity", "0.5,0.8").code == 0
    assert mtlbench("report", *options, "--masks").code == 0
    content = content_of(tmp_path / "report.html")
    (setting,) = content["settings"]
    layers = dict(setting["layers"])
    assert layers["trunk.0.weight"] == "shared"
    assert layers["heads.normals.1.weight"] == "normals"
    assert len(setting["lines"]) == 2
    for line in setting["lines"]:
        masks = load_masks(Store(tmp_path / "runs").run_folder(line["runs"][0]) / MASKS)
        found = dict(zip(layers, line["densities"], strict=True))
        assert found == pytest.approx({name: float(mask.double().mean()) for name, mask in masks.items()})
    run = content["runs"][setting["lines"][0]["runs"][0]]
    assert run["command"].startswith("mtlbench run --method snip --dataset toy --sparsity 0.5 --seeds 1")
    assert "--set method.score.batches=1" in run["command"]
    blind = mtlbench("report", "--store", "runs", "--masks", "--output", "blind.html")
    assert blind.code == 0, blind
    (setting,) = content_of(tmp_path / "blind.html")["settings"]
    assert {component for _, component in setting["layers"]} == {""}, "without the plugin components are not known"
    assert setting["lines"][0]["densities"] is not None
