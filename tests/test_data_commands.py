"""`mtlbench data`: what it prints, what it refuses, and what it writes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from conftest import Answer
from PIL import Image
from test_commands import refused
from test_verify import LAYOUT, photo

from mtlprune_bench.commands import data, run_cli
from mtlprune_bench.data import layouts, locate
from mtlprune_bench.host.registry import load_registry

NAME = "nyuv2-3task"
COMMANDS = ("info", "verify", "prepare", "show", "synth")


@pytest.fixture
def mtlbench(capsys, tmp_path, monkeypatch):
    """Return a function that runs `mtlbench data` in an empty folder, without files in the usual places."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MTLBENCH_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        code = run_cli(["data", *map(str, arguments)])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def root(tmp_path):
    """Return a folder with four training images and one for the test."""
    photos = [photo(seed) for seed in range(5)]
    LAYOUT.write(tmp_path / "files" / "nyuv2", {"train": photos[:4], "test": photos[4:]})
    return tmp_path / "files" / "nyuv2"


def facts(answer, title="found"):
    """Return the facts of a table as a dictionary."""
    text = answer.out[answer.out.index(f"\n{title}\n") + 1 :].split("\n\n")[0]
    return dict(re.findall(r"^│ (\S.*?) +│ (.*?) +│$", text, re.MULTILINE)[1:])


# Help and names


def test_without_a_command_the_help_lists_all(mtlbench):
    answer = mtlbench()
    assert (answer.code, answer.err) == (0, "")
    assert answer == mtlbench("--help")
    assert answer.out.startswith("Usage: mtlbench data")
    assert all(re.search(rf"^  {name} ", answer.out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(mtlbench, name):
    answer = mtlbench(name, "-h")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: mtlbench data {name}")
    options = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", answer.out, re.MULTILINE))
    wanted = {"--layout", "--plugin", "--block", "--debug", "--help"}
    assert options >= wanted | (
        {"--output", "--seed", "--size", "--count"} if name == "synth" else {"--data-root"}
    )


def test_the_nearest_command_and_dataset_are_proposed(mtlbench):
    refused(mtlbench("verfy"), "Unknown command 'data verfy'. Did you mean 'data verify'?", "data synth")
    refused(mtlbench("info", "nyu2"), "Unknown dataset 'nyu2'. Did you mean 'nyuv2'?")


@pytest.mark.parametrize(
    "arguments",
    [("info",), ("verify",), ("prepare",), ("show",), ("synth", "--layout=a", "--count=1", "--output=o")],
)
def test_a_generated_dataset_has_no_files(mtlbench, arguments):
    number = ("0",) if arguments[0] == "show" else ()
    refused(mtlbench(arguments[0], "scenes", *number, *arguments[1:]), "'scenes' has no files", "generated", NAME)


@pytest.mark.parametrize("command", ["verify", "prepare", "show"])
def test_files_that_are_not_found_are_an_error_that_says_where_they_were_looked_for(mtlbench, tmp_path, command):
    number = ("0",) if command == "show" else ()
    answer = mtlbench(command, NAME, *number)
    refused(answer, f"The files of {NAME} were not found as nyuv2 or", *locate.USUAL, f"data info {NAME}", code=1)
    refused(mtlbench(command, NAME, *number, "--data-root", "no"), "There is no folder no.", code=1)
    (tmp_path / "empty").mkdir()
    answer = mtlbench(command, NAME, *number, "--data-root", tmp_path / "empty")
    refused(answer, f"were not found in {tmp_path / 'empty'}. Name their folder by --data-root", code=1)


def test_a_layout_that_is_not_known_is_refused(mtlbench, root):
    refused(mtlbench("verify", NAME, "--data-root", root, "--layout", "adashar"), "Did you mean 'adashare'?")


def test_a_part_of_a_layout_is_an_error_that_says_what_is_missing(mtlbench, root):
    (root / "nyu_v2_3task.json").unlink()
    answer = mtlbench("verify", NAME, "--data-root", root)
    refused(answer, "nearest is 'adashare'", "but no nyu_v2_3task.json", code=1)
    told = mtlbench("info", NAME, "--data-root", root)
    assert told.code == 0
    assert "nearest is 'adashare'" in facts(told)["problem"]


def test_files_are_found_by_the_variable_and_in_the_usual_places(mtlbench, root, monkeypatch, tmp_path):
    monkeypatch.setenv("MTLBENCH_DATA", str(root.parent))
    assert facts(mtlbench("info", NAME))["folder"] == str(root)
    monkeypatch.setenv("MTLBENCH_DATA", str(tmp_path / "cache"))
    assert "none was found in" in facts(mtlbench("info", NAME))["folder"]
    root.parent.rename(tmp_path / "here" / "data")
    assert facts(mtlbench("info", NAME))["folder"] == str(tmp_path / "here" / "data" / "nyuv2")


# Info


def test_info_says_what_every_dataset_is_and_where_it_was_looked_for(mtlbench):
    datasets = [entry.value for entry in load_registry().of_kind("datasets") if entry.value.files]
    assert len(datasets) > 3
    for dataset in datasets:
        answer = mtlbench("info", dataset.name)
        assert (answer.code, answer.err) == (0, "")
        assert answer.out.startswith(f"{dataset.name}\n")
        assert all(
            text in answer.out
            for text in (
                dataset.description,
                dataset.files.licence,
                *(layout.source for layout in dataset.files.layouts),
            )
        )
        for labels in dataset.labels:
            weight = f"{dataset.loss_weights[labels.task]:g}"
            cells = (labels.task, str(labels.classes or ""), labels.unit, weight)
            assert re.search("│ +".join(rf"{re.escape(cell)} *" for cell in cells), answer.out)
        for layout in dataset.files.layouts:
            assert f"│ {layout.name} " in answer.out
            assert layout.description in answer.out
        folder = facts(answer)["folder"]
        assert folder.startswith("none was found as ")
        assert all(place in folder for place in (*dataset.files.folders, *locate.USUAL))


def test_info_says_what_is_found(mtlbench, root):
    answer = mtlbench("info", NAME, "--data-root", root.parent)
    assert facts(answer) == {
        "folder": str(root),
        "layout": "adashare",
        "train images": "4 of 795",
        "test images": "1 of 654",
        "prepared": f"no; to train faster: mtlbench data prepare {NAME}",
    }
    assert "795 train, 654 test" in answer.out
    assert "segmentation (40 or 13), normals, depth (m)" in answer.out


def test_info_says_why_an_index_cannot_be_read(mtlbench, root):
    (root / "nyu_v2_3task.json").write_text("[]")
    answer = mtlbench("info", NAME, "--data-root", root)
    assert (answer.code, answer.err) == (0, "")
    assert "must be an object" in facts(answer)["problem"]


# Verify


def test_verify_of_sound_files_succeeds(mtlbench, root):
    answer = mtlbench("verify", NAME, "--data-root", root)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"{NAME} in {root}, layout adashare\n")
    assert re.search(r"│ train │ segmentation │ 4 +│ 4 +│ .*│ uint8 6 x 8 +│ .*│ 83.3 +│ 40 of 40 │", answer.out)
    assert answer.out.count("Problem: ") == 0
    assert answer.out.count("Warning: ") == 2
    assert answer.out.endswith("\n0 problems, 2 warnings.\n")


def test_verify_names_each_bad_file_once_and_writes_the_report(mtlbench, root, tmp_path):
    bad = [root / name for name in ("img/0000.png", "seg/0002.png", "depth/0004.npy")]
    bad[0].write_bytes(b"no picture")
    bad[1].unlink()
    np.save(bad[2], np.ones((3, 3), dtype=np.float32))
    answer = mtlbench(
        "verify", NAME, "--data-root", root, "--workers", 2, "--json", tmp_path / "made" / "report.json"
    )
    assert answer.code == 1
    assert answer.err == f"Wrote {tmp_path / 'made' / 'report.json'}.\n"
    lines = [line for line in answer.out.splitlines() if line.startswith("Problem: ")]
    assert len(lines) == 3
    assert all(line.startswith(f"Problem: {path} ") for line, path in zip(lines, bad, strict=True))
    assert answer.out.endswith("\n3 problems, 2 warnings.\n")
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    assert [problem["path"] for problem in report["problems"]] == list(map(str, bad))
    assert report["read"]["train"]["image"]["images"] == 3
    assert len(report["warnings"]) == 2


def test_verify_of_a_part_reads_no_more(mtlbench, root):
    Image.fromarray(np.full((6, 8), 77, dtype=np.uint8)).save(root / "seg/0001.png")
    assert mtlbench("verify", NAME, "--data-root", root).code == 1
    answer = mtlbench("verify", NAME, "--data-root", root, "--limit", 1)
    assert answer.code == 0
    assert re.search(r"│ train │ segmentation │ 1 +│", answer.out)
    refused(mtlbench("verify", NAME, "--data-root", root, "--limit", 0), "'--limit'", "x>=1")
    refused(mtlbench("verify", NAME, "--data-root", root, "--workers", 0), "'--workers'", "x>=1")


def test_verify_of_a_damaged_index_says_so(mtlbench, root):
    (root / "nyu_v2_3task.json").write_text("{")
    answer = mtlbench("verify", NAME, "--data-root", root)
    assert answer.code == 1
    assert "Problem: " in answer.out
    assert "cannot be read as JSON" in answer.out
    assert answer.out.endswith("1 problems, 0 warnings.\n")


def test_a_bar_shows_on_a_terminal_only(mtlbench, root, monkeypatch):
    assert mtlbench("verify", NAME, "--data-root", root).err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert f"verifying {NAME}" in mtlbench("verify", NAME, "--data-root", root).err


def test_an_interrupted_verification_ends_with_one_line(mtlbench, root, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtlprune_bench.data.reports.Tally.__add__", stopped)
    answer = mtlbench("verify", NAME, "--data-root", root)
    assert answer.code == 130
    assert answer.err.strip().startswith("Error: Stopped.")
    assert answer.err.strip().count("\n") == 0


# Prepare


def test_prepare_says_what_it_takes_and_where_it_is_and_verify_reads_it(mtlbench, root, tmp_path):
    answer = mtlbench("prepare", NAME, "--data-root", root)
    assert answer.code == 0, answer.err
    assert re.fullmatch(r"Takes 0\.00 GB in \S+; \d+\.\d\d GB are free\.\n", answer.err)
    (folder,) = (path for path in (tmp_path / "cache" / "prepared").iterdir() if path.is_dir())
    assert answer.out == f"Prepared in {folder}. Runs use it from now on.\n"
    assert facts(mtlbench("info", NAME, "--data-root", root))["prepared"] == f"yes, in {folder}"
    assert mtlbench("verify", NAME, "--data-root", root).code == 0
    shard = next(folder.glob("image*.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    answer = mtlbench("verify", NAME, "--data-root", root)
    assert answer.code == 1
    assert f"Problem: {shard}" in answer.out
    assert answer.out.endswith("1 problems, 2 warnings.\n")


def test_prepared_images_can_be_used_without_the_files(mtlbench, root, tmp_path):
    made = tmp_path / "made"
    answer = mtlbench("prepare", "nyuv2", "--data-root", root, "--output", made, "--workers", 1)
    assert answer.code == 0, answer.err
    assert answer.out == f"Prepared in {made}. Runs use it from now on, with --data-root {made}.\n"
    root.parent.rename(tmp_path / "gone")
    found = facts(mtlbench("info", "nyuv2", "--data-root", made))
    assert (found["folder"], found["train images"], found["prepared"]) == (
        str(made),
        "4 of 795",
        "yes, this folder",
    )
    assert mtlbench("verify", "nyuv2", "--data-root", made).code == 0
    again = mtlbench("prepare", "nyuv2", "--data-root", made)
    refused(again, "holds images that are prepared already")
    refused(mtlbench("verify", NAME, "--data-root", made), "lack some that nyuv2-3task needs", code=1)


def test_prepare_refuses_bad_files(mtlbench, root):
    (root / "seg/0003.png").write_bytes(b"")
    answer = mtlbench("prepare", NAME, "--data-root", root)
    assert answer.code == 1
    assert f"Error: {root / 'seg/0003.png'} cannot be read as a PNG image" in answer.err
    assert answer.out == ""


# Show


def test_show_draws_an_image_with_its_labels(mtlbench, root, tmp_path):
    answer = mtlbench("show", NAME, 3, "--data-root", root)
    assert (answer.code, answer.err, answer.out) == (0, "", f"Wrote {NAME}-train-3.png.\n")
    with Image.open(tmp_path / "here" / f"{NAME}-train-3.png") as picture:
        assert picture.format == "PNG"
        drawn = np.asarray(picture.convert("RGB"))
    assert min(drawn.shape[:2]) > 20
    options = ("--split", "test", "--protocol", "disparse", "--output", "new/other.png")
    assert mtlbench("show", NAME, 0, "--data-root", root, *options).out == "Wrote new/other.png.\n"
    with Image.open(tmp_path / "here" / "new" / "other.png") as picture:
        assert not np.array_equal(drawn, np.asarray(picture.convert("RGB")))


def test_show_refuses_what_is_not_there(mtlbench, root, tmp_path):
    answer = mtlbench("show", NAME, 1, "--data-root", root, "--split", "test")
    refused(answer, "There is no image 1 in 'test': it has 1, counted from 0.")
    refused(mtlbench("show", NAME, 0, "--data-root", root, "--split", "val"), "'val' is not one of 'train'")
    refused(mtlbench("show", NAME, "one", "--data-root", root), "'one' is not a valid integer")
    assert list((tmp_path / "here").iterdir()) == []


def test_the_splits_are_those_of_the_layouts():
    assert data.SPLITS == layouts.SPLITS


# Synth


def test_synth_writes_files_that_verify(mtlbench, tmp_path):
    options = ("--layout", "adashare", "--count", 2, "--size", "48x64", "--seed", 3)
    answer = mtlbench("synth", NAME, *options, "--output", "made")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "Wrote 2 train and 1 test images in made. These are generated, not NYU-v2.\n"
    verified = mtlbench("verify", NAME, "--data-root", "made")
    assert verified.code == 0
    assert "uint8 3 x 48 x 64" in verified.out
    before = sorted(path.name for path in (tmp_path / "here" / "made").iterdir())
    again = mtlbench("synth", NAME, *options, "--output", "made")
    refused(again, "made", "empty", code=1)
    assert sorted(path.name for path in (tmp_path / "here" / "made").iterdir()) == before


def test_synth_refuses_what_it_cannot_make(mtlbench, tmp_path):
    options = ("--count", 1, "--output", "made")
    refused(mtlbench("synth", NAME, *options), "Missing option '--layout'")
    refused(mtlbench("synth", NAME, *options, "--layout", "adashar"), "Did you mean 'adashare'?")
    for size in ("48", "48x", "0x64", "48x64x3", "axb"):
        answer = mtlbench("synth", NAME, *options, "--layout", "adashare", "--size", size)
        refused(answer, f"Size '{size}' is no height and width")
    refused(mtlbench("synth", NAME, "--layout", "adashare", "--count", 0, "--output", "made"), "x>=1")
    assert list((tmp_path / "here").iterdir()) == []


def test_synth_needs_a_generated_stand_in(mtlbench, tmp_path):
    plugin = tmp_path / "plain.py"
    plugin.write_text(
        "from dataclasses import replace\n"
        "from mtlprune_bench import hookimpl\n"
        "from mtlprune_bench.plugins.datasets.nyuv2 import nyuv2\n\n"
        "@hookimpl\ndef register_datasets(register):\n"
        "    register(replace(nyuv2(40, True), name='plain', stand_in=''))\n"
    )
    options = ("--layout", "adashare", "--count", 1, "--output", "made", "--plugin", plugin)
    refused(mtlbench("synth", "plain", *options), "Nothing generates images for plain")
