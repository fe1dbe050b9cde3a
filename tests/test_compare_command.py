"""`mtlbench compare`: what it prints, in every format, and what it refuses."""

import csv
import io
import json
import re
from statistics import fmean

import pytest
from tables import frame
from test_paired import DENSE, LTH, SEEDS, SNIP, pair, runs
from test_render import NASTY

from mtlprune_bench.commands import run_cli
from mtlprune_bench.commands.compare import FORMATS as CHOICES
from mtlprune_bench.results.evidence import FORMATS, HEADINGS, NOT_ENOUGH, footnotes
from mtlprune_bench.store import Store, write_json, write_rows


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """Give every test a wide terminal."""
    monkeypatch.setenv("COLUMNS", "500")


@pytest.fixture
def mtlbench(capsys, tmp_path, monkeypatch):
    """Return a function that runs `mtlbench` on a store with SEEDS."""
    monkeypatch.chdir(tmp_path)
    for row in frame(*SEEDS).to_dict("records"):
        folder = Store(tmp_path / "runs").run_folder(row["run"])
        write_json(folder / "config.json", {})
        write_rows(folder, [row])

    def run(*arguments):
        code = run_cli(list(arguments))
        return code, *capsys.readouterr()

    return run


TERMINAL = """\
toy: patches; model net; protocol standard; 30 steps; sparsity 90 %; reference: lth
╭──────────────────┬────────┬───────────┬────────┬───────────────┬─────────────────┬───────┬───────┬───╮
│ metric           │ method │ reference │ mean   │ difference    │ 95 % interval   │ p     │ Holm  │ n │
├──────────────────┼────────┼───────────┼────────┼───────────────┼─────────────────┼───────┼───────┼───┤
│ seg miou ↑ %     │ snip   │ 26.67     │ 31.67  │ +5.00 better  │ +0.00 to +10.00 │ 0.500 │ 0.500 │ 3 │
│ delta (mean) ↑ % │ snip   │ -33.33    │ -13.33 │ +20.00 better │ +0.00 to +50.00 │ 0.500 │ 0.500 │ 3 │
╰──────────────────┴────────┴───────────┴────────┴───────────────┴─────────────────┴───────┴───────┴───╯
difference: method minus reference, the mean over the n seeds that both have; % are percentage points.
"""


def test_the_terminal_shows_the_differences_and_what_they_mean(mtlbench):
    code, out, err = mtlbench("compare", "lth", "snip")
    assert (code, err) == (0, "")
    assert out.startswith(TERMINAL)
    assert (
        "\ndelta (mean): relative improvement over the dense network of the same seed, mean over a task's" in out
    )
    assert "percentile bootstrap of the mean difference, 9999 resamples." in out
    assert "in about 75 % with 3 seeds, 84 % with 5 seeds" in out
    assert "\np: two-sided, exact sign-flip permutation test of the mean, over all 2^n choices of signs.\n" in out
    assert "\nWith 3 seeds the smallest p there can be is 2/2^3 = 0.25: 0.05 is out of reach" in out
    assert "Holm:" not in out, "one method, nothing to correct for"


def test_every_format_has_a_choice_on_the_command_line_and_may_go_to_a_file(mtlbench, tmp_path):
    assert tuple(FORMATS) == CHOICES
    for style in CHOICES:
        code, out, err = mtlbench("compare", "lth", "snip", "--format", style)
        assert (code, err) == (0, "")
        assert mtlbench("compare", "lth", "snip", "--format", style, "--output", "made") == (
            0,
            "",
            "Wrote made.\n",
        )
        assert (tmp_path / "made").read_text() == out


def test_options_choose_data_sparsity_metric_and_delta(mtlbench):
    options = ("--dataset", "toy", "--sparsity", "0.9", "--metric", "delta", "--delta", "adapmtl")
    _, out, _ = mtlbench("compare", "dense", "snip", "lth", *options, "--format", "json")
    (pairing,) = json.loads(out)
    assert [(effect["metric"], effect["task"], effect["method"]) for effect in pairing["effects"]] == [
        ("delta", "seg", "snip"),
        ("delta", "seg", "lth"),
        ("delta", "", "snip"),
        ("delta", "", "lth"),
    ]
    assert {effect["definition"] for effect in pairing["effects"]} == {"adapmtl"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("lth", "snpi"), "Unknown method 'snpi'. Did you mean 'snip'?"),
        (("lth",), "Missing argument 'METHODS...'"),
        (("lth", "snip", "--dataset", "toi"), "Unknown dataset 'toi'. Did you mean 'toy'?"),
        (("lth", "snip", "--sparsity", "0.5"), "no finished run at sparsity 0.5, but at 0.9."),
        (("lth", "snip", "--sparsity", "half"), "'half' is no list of numbers, such as 0.5,0.9."),
        (("lth", "snip", "--metric", "mou"), "Unknown metric 'mou'. Did you mean 'miou'?"),
        (("lth", "snip", "--delta", "median"), "Unknown definition of delta 'median'. Did you mean 'mean'?"),
        (("lth", "snip", "--store", "nowhere"), "There are no results in nowhere. Make some with mtlbench run"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(mtlbench, arguments, text):
    code, out, err = mtlbench("compare", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert text in err


def test_csv_and_json_hold_the_exact_numbers():
    (pairing,) = found = pair(SEEDS)
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](found))))
    (told,) = json.loads(FORMATS["json"](found))
    assert told["notes"] == footnotes(pairing)
    for effect, line, record in zip(pairing.effects, lines, told["effects"], strict=True):
        assert tuple(record["values"]) == tuple(map(float, line["values"].split())) == effect.values
        assert tuple(record["reference_values"]) == effect.base
        assert record["difference"] == float(line["difference"]) == fmean(effect.differences)
        assert (record["low"], record["high"], record["p"]) == (effect.low, effect.high, effect.p)
        assert (float(line["low"]), float(line["p_holm"])) == (effect.low, effect.corrected)
        assert record["verdict"] == line["verdict"] == "better"
        assert (line["reference"], line["method"], line["sparsity"], line["stand_in"]) == (
            "lth",
            "snip",
            "0.9",
            "False",
        )
        assert (record["seeds"], line["seeds"], record["tests"]) == ([0, 1, 2], "0 1 2", 1)


@pytest.mark.parametrize("style", FORMATS)
def test_too_few_seeds_are_said_to_be_too_few(style):
    found = pair([*runs(LTH, 0.1, 0.2), *runs(SNIP, 0.4, 0.3)])
    text = FORMATS[style](found)
    assert NOT_ENOUGH in text
    assert "nan" not in text.lower()
    if style in ("terminal", "markdown"):
        assert re.search(r"\+20\.00 better *[│|] *– *[│|] *not enough seeds *[│|] *– *[│|] *2 *[│|]", text)
        assert "not enough seeds: 3 that both have are needed for an interval and p." in text
        assert "bootstrap" not in text


def test_what_was_never_measured_by_both_has_no_number():
    (pairing,) = found = pair([*SEEDS, *runs(LTH, 1, 2, 3, metric="other")])
    assert [len(effect.seeds) for effect in pairing.effects] == [3, 0, 3]
    assert re.search(
        r"│ seg other ↑ % +│ snip +│ – +│ – +│ – +│ – +│ not enough seeds", FORMATS["terminal"](found)
    )
    assert json.loads(FORMATS["json"](found))[0]["effects"][1]["difference"] is None


def limits(count, methods):
    """Return the footnote on the smallest p of `methods` that were run with `count` seeds, if there is one."""
    rows = runs(LTH, *[0.1] * count)
    for number in range(methods):
        rows += runs({"method": f"m{number}", "sparsity": 0.9}, *[0.2] * count)
    (pairing,) = pair(rows, "lth", *[f"m{number}" for number in range(methods)])
    return [note for note in footnotes(pairing) if "out of reach" in note]


def test_a_note_says_where_no_difference_could_be_significant():
    (five,) = limits(5, 1)
    assert "With 5 seeds the smallest p there can be is 2/2^5 = 0.0625: 0.05 is out of reach" in five
    assert limits(6, 1) == []
    (six,) = limits(6, 2)
    assert "2/2^6 = 0.03125, 0.0625 after Holm's correction over 2 methods: 0.05" in six
    (three,) = limits(3, 5)
    assert "2/2^3 = 0.25, 1 after Holm's correction over 5 methods" in three


def test_the_test_that_was_made_is_named_and_the_correction_only_where_there_is_one():
    many = [number / 10 for number in range(13)]
    rows = [*runs(LTH, *many), *runs(SNIP, *reversed(many)), *runs(DENSE, *many[:12], metric="other")]
    (pairing,) = pair(rows, "lth", "snip", "dense", metrics=["miou"])
    text = " ".join(footnotes(pairing))
    assert "Wilcoxon signed-rank test, differences of 0 left out." in text
    assert "sign-flip" not in text
    assert "Holm" not in text
    (pairing,) = pair([*rows, *runs({"method": "set", "sparsity": 0.9}, *many[:12])], "lth", "snip", "set")
    text = " ".join(footnotes(pairing))
    assert "Wilcoxon" in text
    assert "sign-flip" in text
    assert "Holm: p corrected over the 2 methods that are compared by one metric" in text


@pytest.mark.parametrize(("count", "text"), [(10, "0.002"), (12, "<0.001")])
def test_small_p_values_are_rounded_to_thousandths(count, text):
    # 2/2^10 is 0.00195, 2/2^12 is 0.00049.
    assert f"│ {text} " in FORMATS["terminal"](pair([*runs(LTH, *[0.1] * count), *runs(SNIP, *[0.2] * count)]))


def test_markdown_is_a_table_with_as_many_cells_in_every_row():
    rows = [*runs({"method": NASTY, "sparsity": 0.9}, 0.1, 0.2, 0.3), *runs(SNIP, 0.2, 0.2, 0.5)]
    for names in ((NASTY, "snip"), ("snip", NASTY)):
        text = FORMATS["markdown"](pair(rows, *names))
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len(lines) == 3
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {1 + len(HEADINGS)}


def test_every_setting_and_sparsity_has_a_table_also_one_without_pairs():
    rows = [*SEEDS, *runs(LTH, 0.1, sparsity=0.5), *runs(LTH, 0.1, first=1, dataset="other")]
    text = FORMATS["terminal"](pair(rows))
    titles = [line for line in text.splitlines() if "reference: lth" in line]
    assert titles == [
        "other: patches; model net; protocol standard; 30 steps; sparsity 90 %; reference: lth: none",
        "toy: patches; model net; protocol standard; 30 steps; sparsity 50 %; reference: lth: none",
        "toy: patches; model net; protocol standard; 30 steps; sparsity 90 %; reference: lth",
    ]
    assert text.count("lth and snip have no seed in common here.") == 2
    lines = [line for line in FORMATS["markdown"](pair(rows)).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2
