"""Tables as text: every format tells the same numbers, and nothing in a name can break one."""

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from goldens import FOLDER, goldens
from tables import ERROR, FAILURE, frame

from mtlprune_bench.commands.table import FORMATS as CHOICES
from mtlprune_bench.results.captions import groups, places
from mtlprune_bench.results.comparisons import Cell, comparisons
from mtlprune_bench.results.render import FORMATS, caption, footnotes, number, plain, render

NASTY = "<script>alert('a_b & 5 %')</script> | {x} \\ $1 #2 ~ ^"


def table(*changes):
    (comparison,) = comparisons(frame(*changes))
    return comparison


def small():
    """Return dense against SNIP: mIoU 50 % against 25 and 35 %, the angle 10 degrees against 12."""
    dense = {"method": "dense", "sparsity": 0.0}
    whole = {"task": "", "split": "", "component": "whole", "metric": "sparsity", "higher_is_better": None}
    return table(
        dense,
        dense | ERROR | {"value": 10.0},
        {"value": 0.25},
        {"value": 0.35, "seed": 1},
        ERROR | {"value": 12.0},
        whole | {"value": 0.5},
        FAILURE | {"run": "bad", "status": "diverged", "reason": "the loss is nan", "seed": 2},
    )


def nasty():
    """Return a table in which the names, the data and the reason of a failure are NASTY."""
    failure = FAILURE | {"run": NASTY, "status": "failed", "reason": NASTY}
    names = {"dataset": NASTY, "data": NASTY}
    return table({"method": NASTY, "settings": NASTY} | names, failure | names)


def test_a_sparsity_that_was_not_reached_has_a_note():
    whole = {"task": "", "split": "", "component": "whole", "metric": "sparsity", "higher_is_better": None}
    far = footnotes(table({"method": "adapmtl", "sparsity": 0.9}, {"sparsity": 0.9} | whole | {"value": 0.02}))
    reached = "snip was asked for a sparsity of 90 % and reached 2.00 %"
    assert far == [f"{reached}: not to be compared with others at that sparsity."]
    assert footnotes(table({"sparsity": 0.9} | whole | {"value": 0.9001})) == []


def test_costs_are_whole_numbers_in_a_block_of_their_own():
    cost = {"task": "", "split": "", "metric": "steps", "unit": "step", "higher_is_better": False}
    both = table({"value": 0.3}, cost | {"value": 200.0}, cost | {"value": 200.0, "seed": 1})
    text = render([both], "terminal")
    assert "\ncost\n" in text
    assert re.search(r"│ +200 │", text), "no deviation where there is none"
    assert number(Cell(12.4, 1.6), "s") == "12 ± 2"


def test_every_format_has_a_choice_on_the_command_line():
    assert FORMATS == CHOICES


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.iterdir()))
def test_a_table_is_the_golden_one_to_the_letter(name):
    assert goldens()[name] == (FOLDER / name).read_text()


def test_every_golden_table_is_kept():
    assert set(goldens()) == {path.name for path in FOLDER.iterdir()}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs a TeX engine")
def test_latex_compiles(tmp_path):
    body = (FOLDER / "table.tex").read_text() + render([nasty()], "latex")
    text = f"\\documentclass{{article}}\\usepackage{{booktabs,graphicx}}\\begin{{document}}{body}\\end{{document}}"
    (tmp_path / "table.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 10_000


def marked(*values, **more):
    """Return the places of lines with these values of mIoU, methods a, b, c, ..., at a sparsity of 50 %."""
    lines = [{"method": name, "value": value} | more for name, value in zip("abcdef", values, strict=False)]
    return [next(iter(own.values()), None) for own in places(table(*lines))]


def test_best_and_second_best_are_marked():
    assert marked(0.3, 0.5, 0.4) == [None, 1, 2]
    assert marked(0.3, 0.5, 0.4, higher_is_better=False) == [1, None, 2]


def test_numbers_that_are_equal_as_printed_share_a_mark():
    assert marked(0.50001, 0.5, 0.4, 0.40001, 0.3) == [1, 1, 2, 2, None]


def test_nothing_is_best_where_all_are_equal_or_alone_or_where_no_side_is_better():
    assert marked(0.5, 0.5) == [None, None]
    assert marked(0.5) == [None]
    assert marked(0.3, 0.5, higher_is_better=None) == [None, None]
    assert marked(3.0, 5.0, higher_is_better=False, metric="steps", task="") == [None, None]


def test_marks_are_of_one_sparsity_and_not_for_numbers_that_are_missing():
    lines = [{"method": name, "sparsity": s, "value": v} for name, s, v in (("a", 0.5, 0.9), ("b", 0.9, 0.2))]
    other = {"method": "c", "sparsity": 0.9, "value": 0.1}
    nothing = {"method": "d", "sparsity": 0.9, "value": float("nan")}
    assert [list(own.values()) for own in places(table(*lines, other, nothing))] == [[], [1], [2], []]


def test_a_line_that_missed_its_sparsity_is_never_the_best():
    whole = {"task": "", "split": "", "component": "whole", "metric": "sparsity", "higher_is_better": None}
    far = {"method": "a"}
    comparison = table(
        far | {"value": 0.9}, far | whole | {"value": 0.1}, {"value": 0.5}, {"method": "z", "value": 0.4}
    )
    assert [list(own.values()) for own in places(comparison)] == [[], [1], [2]]


def test_lines_stand_in_groups_by_paradigm_within_a_sparsity():
    kinds = [
        ("learned", 0.5),
        ("pre-trained", 0.9),
        ("dynamic", 0.5),
        ("static", 0.5),
        ("baseline", 0.0),
        ("", 0.9),
    ]
    comparison = table(
        *({"paradigm": kind, "sparsity": s, "method": f"a{n}"} for n, (kind, s) in enumerate(kinds))
    )
    assert groups(comparison) == ["baseline", "static", "dynamic", "learned", "", "pre-trained"]
    assert set(groups(dataclasses.replace(comparison, grouped=False))) == {""}


def test_a_group_has_one_title_however_many_lines_it_has():
    assert groups(table({}, {"method": "a"}, {"method": "b", "sparsity": 0.9})) == ["static", "", "static"]


def test_the_terminal_shows_arrows_percentages_deviations_and_failures():
    text = render([small()], "terminal")
    assert "miou ↑" in text
    assert "mean_angle ↓" in text
    # The sample deviation of 25 and 35 is sqrt(50) = 7.07; against dense's 50 that is -40 %, and the angle's
    # +20 % is as bad again: mean -30 %.
    assert "30.00 ± 7.07" in text
    assert "-30.00" in text
    assert "Mean ± sample standard deviation over seeds." in text
    assert "bad diverged: the loss is nan" in text
    assert re.search(r"snip +│ +50 │", text), "the sparsity asked for, in percent"


def test_a_stand_in_is_named_in_the_caption_of_every_format():
    comparison = table({"stand_in": True})
    for style in set(FORMATS) - {"csv", "json"}:
        assert "STAND-IN, not the real data" in render([comparison], style), style
        assert "STAND-IN" not in render([table({})], style), style
    (row,) = csv.DictReader(io.StringIO(render([comparison], "csv")))
    assert row["stand_in"] == "True"


def test_the_caption_says_what_all_lines_have_in_common():
    assert caption(table({})) == "toy: patches; model net; protocol standard; 30 steps"


def test_notes_are_only_made_where_they_are_needed():
    assert footnotes(table({})) == []


@pytest.mark.parametrize(
    ("cell", "unit", "text"),
    [
        (Cell(0.12345, float("nan")), "fraction", "12.35"),
        (Cell(0.12345, 0.5), "degree", "0.12 ± 0.50"),
        (Cell(0.12345, float("nan")), "", "0.1235"),
        (Cell(float("nan"), float("nan")), "fraction", "–"),
        (None, "", "–"),
    ],
)
def test_numbers_are_rounded_by_unit_and_fractions_are_percentages(cell, unit, text):
    assert number(cell, unit) == text


def test_settings_and_finetuning_are_part_of_the_methods_label():
    text = render([table({"settings": "arbiter=all", "finetune": "8 steps"})], "markdown")
    assert "| snip (arbiter=all 8 steps) |" in text


@pytest.mark.parametrize("make", [small, nasty])
def test_markdown_is_a_table_with_as_many_cells_in_every_row(make):
    lines = [line for line in render([make()], "markdown").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(make().lines) + sum(map(bool, groups(make())))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {1 + 4 + len(make().columns)}


def test_csv_holds_the_exact_numbers():
    comparison = table({"value": 0.1 + 0.2}, {"value": 1 / 3, "seed": 1})
    (row,) = csv.DictReader(io.StringIO(render([comparison], "csv")))
    (cell,) = comparison.lines[0].cells.values()
    assert float(row["seg miou ↑ fraction mean"]) == cell.mean
    assert float(row["seg miou ↑ fraction std"]) == cell.deviation
    assert (row["method"], row["sparsity"], row["seeds"], row["dataset"]) == ("snip", "0.5", "2", "toy")


def test_csv_leaves_a_missing_number_empty_and_takes_any_name():
    dense, snip = csv.DictReader(io.StringIO(render([small()], "csv")))
    assert dense["whole sparsity fraction mean"] == ""
    assert (snip["whole sparsity fraction mean"], snip["whole sparsity fraction std"]) == ("0.5", "")
    (row,) = csv.DictReader(io.StringIO(render([nasty()], "csv")))
    assert (row["method"], row["dataset"]) == (NASTY, NASTY)


@pytest.mark.parametrize("make", [small, nasty])
def test_latex_has_balanced_braces_rules_and_escapes(make):
    text = render([make()], "latex")
    bare = re.sub(r"\\[\\{}%&#$_]", "", text)
    depth = 0
    for letter in bare:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{table}"))
    # The only percent sign that is not escaped comments out the line break behind \resizebox.
    assert re.findall(r"(?<!\\)%.*", text) == ["%"]
    assert not re.search(r"(?<!\\)[_#]", text)
    assert bare.count("$") % 2 == 0
    assert text.isascii()


def test_latex_turns_arrows_and_signs_into_commands():
    text = render([small()], "latex")
    assert r"miou $\uparrow$ \%" in text
    assert r"mean\_angle $\downarrow$ degree" in text
    assert r"30.00 $\pm$ 7.07" in text


class Tags(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_html_escapes_names_data_and_reasons():
    page = Tags(render([nasty()], "html"))
    assert "script" not in page.tags
    # Dataset and its description in the caption, method and settings, the failed run and its reason.
    assert page.text.count(NASTY) == 6
    assert page.tags.count("tr") == 3
    assert page.tags.index("caption") == page.tags.index("table") + 1


def test_a_method_name_cannot_be_taken_for_the_table():
    page = render([table({"method": "<table>"})], "html")
    assert page.count("<table>") == page.count("<caption>") == 1


@pytest.mark.parametrize("style", FORMATS)
def test_a_setting_in_which_everything_failed_is_still_a_table(style):
    comparison = table(FAILURE | {"run": "bad", "status": "failed", "reason": "no scores today"})
    text = render([comparison], style)
    assert "toy" in text or style == "csv"
    assert ("no scores today" in text) == (style != "csv")


@pytest.mark.parametrize("style", ["terminal", "markdown", "latex", "html"])
def test_several_tables_follow_one_another_and_say_what_differs(style):
    one, other = (
        small(),
        dataclasses.replace(small(), setting={**small().setting, "dataset": "second", "stand_in": True}),
    )
    text = render([one, other], style)
    assert text.startswith(f"{render([one], style)}\n{render([other], style)}\n")
    words = "2 tables, never averaged together, as they differ in dataset (toy; second), stand-in (False; True)."
    assert text.splitlines()[-1] in (words, rf"\noindent {words}", f"<p>{words}</p>")


def test_several_tables_are_one_csv_and_one_list_in_json():
    setting = {**small().setting, "protocol": "other"}
    both = [small(), dataclasses.replace(table({}, ERROR | {"metric": "new"}), setting=setting)]
    rows = list(csv.DictReader(io.StringIO(render(both, "csv"))))
    assert [(row["protocol"], row["method"]) for row in rows] == [
        ("standard", "dense"),
        ("standard", "snip"),
        ("other", "snip"),
    ]
    assert (rows[0]["normals new ↓ degree mean"], rows[2]["normals new ↓ degree mean"]) == ("", "0.5")
    assert [each["setting"]["protocol"] for each in json.loads(render(both, "json"))] == ["standard", "other"]


def test_json_holds_the_exact_numbers_runs_and_marks():
    rows = [{"value": 1 / 3, "run": "x"}, {"value": 0.1, "seed": 1, "run": "y"}, {"method": "worse", "value": 0.0}]
    (found,) = json.loads(render([table(*rows)], "json"))
    better, worse = found["lines"]
    assert better["cells"] == [{"mean": (1 / 3 + 0.1) / 2, "deviation": pytest.approx(0.164991582), "place": 1}]
    assert (better["runs"], better["seeds"], better["paradigm"]) == (["x", "y"], [0, 1], "static")
    assert worse["cells"] == [{"mean": 0.0, "deviation": None, "place": 2}]
    assert [column["title"] for column in found["columns"]] == ["seg miou ↑ %"]


def test_plain_tables_show_every_text_as_it_is():
    text = plain("title", [["[red]a[/red]", "1"]], ["name", "[b]number"])
    assert text.startswith("title\n")
    assert "[red]a[/red]" in text
    assert "[b]number" in text
    assert plain("title", [], ["name"]) == "title: none\n"
