"""Verification: each bad file is named once, whatever else is bad, and what was read is counted."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mtlprune_bench import Column, DataError, Index, Labels, Place, Sample
from mtlprune_bench.data.locate import Found, locate
from mtlprune_bench.data.reports import report_table
from mtlprune_bench.data.verify import verify
from mtlprune_bench.host.registry import load_registry

HEIGHT, WIDTH = 6, 8
INDEX = "nyu_v2_3task.json"
DATASET = load_registry().get("datasets", "nyuv2-3task")
LAYOUT = DATASET.files.layouts[0]


def photo(seed):
    """Return a sample with pixels of every class, and a first row without any label."""
    rng = np.random.default_rng(seed)
    mask = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    mask[0] = False
    classes = torch.from_numpy(rng.permutation(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 40)
    normals = rng.normal(size=(3, HEIGHT, WIDTH)).astype(np.float32)
    targets = {
        "segmentation": classes.where(mask, torch.tensor(255)),
        "normals": torch.from_numpy(normals / np.linalg.norm(normals, axis=0)) * mask,
        "depth": torch.from_numpy(rng.uniform(1, 5, (1, HEIGHT, WIDTH)).astype(np.float32)) * mask,
    }
    image = torch.from_numpy(rng.integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8))
    return Sample.of(image, targets, dict.fromkeys(targets, mask))


@pytest.fixture
def root(tmp_path):
    """Return a folder with five training and two test images; numbers 0 to 4, and 5 and 6."""
    photos = [photo(seed) for seed in range(7)]
    LAYOUT.write(tmp_path / "nyuv2", {"train": photos[:5], "test": photos[5:]})
    return tmp_path / "nyuv2"


def report_of(root, dataset=DATASET, workers=2, limit=None, advance=lambda count: None):
    return verify(dataset, locate(dataset.files, root), workers, advance, limit)


def paths(problems, root):
    return [str(problem.path.relative_to(root)) for problem in problems]


# Sound files


def test_sound_files_have_no_problems_and_are_counted(root):
    metres = np.load(root / "depth/0001.npy")
    metres[3, 3:5] = 0.25, 77  # the extremes are neither in the first image nor in the last
    np.save(root / "depth/0001.npy", metres)
    advanced = []
    report = report_of(root, advance=advanced.append)
    assert report.problems == ()
    assert advanced == [1] * 7
    assert report.listed == {"train": 5, "validation": 0, "test": 2}
    assert {split: list(columns) for split, columns in report.tallies.items()} == {
        split: ["image", "segmentation", "normals", "depth"] for split in ("train", "test")
    }
    classes = report.tallies["train"]["segmentation"]
    assert (classes.images, classes.files, classes.shapes, classes.types) == (5, 5, {"6 x 8": 5}, {"uint8": 5})
    assert (classes.pixels, classes.valid) == (5 * 48, 5 * 40)
    stored = [np.asarray(Image.open(root / f"seg/{number:04}.png")) for number in range(5)]
    assert classes.classes == Counter(int(value) for array in stored for value in array.flat if value != 255)
    for column, folder in (
        ("image", "img"),
        ("segmentation", "seg"),
        ("normals", "normal_mask"),
        ("depth", "depth"),
    ):
        sizes = [path.stat().st_size for path in sorted((root / folder).iterdir())]
        assert report.tallies["train"][column].bytes == sum(sizes[:5])
        assert report.tallies["test"][column].bytes == sum(sizes[5:])
    depth = report.tallies["train"]["depth"]
    assert (depth.low, depth.high) == (0.25, 77)
    pixels = np.stack([np.asarray(Image.open(root / f"img/{number:04}.png")) for number in (5, 6)])
    image = report.tallies["test"]["image"]
    assert (image.low, image.high, image.pixels) == (pixels.min(), pixels.max(), 0)


def test_the_number_of_threads_changes_nothing(root):
    (root / "seg/0001.png").unlink()
    (root / "img/0003.png").write_bytes(b"no picture")
    one, many = report_of(root, workers=1), report_of(root, workers=5)
    assert one.as_json() == many.as_json()
    assert len(one.problems) == 2


def test_only_the_tasks_of_the_dataset_are_read(root):
    for path in (root / "depth").iterdir():
        path.unlink()
    two_tasks = replace(DATASET, labels=DATASET.labels[:2])
    assert report_of(root, two_tasks).problems == ()
    assert len(report_of(root).problems) == 7


def test_the_report_is_plain_json(root):
    (root / "depth/0000.npy").unlink()
    (root / "depth/0005.npy").unlink()
    (root / "depth/0006.npy").unlink()
    report = report_of(root)
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert content == report.as_json()
    assert set(content) == {"dataset", "layout", "root", "note", "listed", "read", "problems", "warnings"}
    assert (content["dataset"], content["layout"], content["root"]) == ("nyuv2-3task", "adashare", str(root))
    depth = content["read"]["test"]["depth"]
    assert depth == {
        **{"images": 0, "files": 0, "bytes": 0, "shapes": {}, "types": {}},
        **{"low": None, "high": None, "valid": None, "pixels_by_class": {}},
    }
    assert content["read"]["train"]["depth"]["valid"] == pytest.approx(40 / 48)
    assert content["problems"][0] == {
        "path": str(root / "depth/0000.npy"),
        "text": f"{root / 'depth/0000.npy'} is missing. Unpack the archive again.",
    }


def test_the_table_has_a_line_for_each_split_and_column(root):
    title, rows, headings = report_table(report_of(root))
    assert title == f"nyuv2-3task in {root}, layout adashare"
    assert all(len(row) == len(headings) for row in rows)
    lines = {tuple(row[:2]): dict(zip(headings, row, strict=True)) for row in rows}
    assert len(lines) == 8
    classes = lines["train", "segmentation"]
    assert (classes["images"], classes["files"], classes["valid %"], classes["classes"]) == (
        "5",
        "5",
        "83.3",
        "40 of 40",
    )
    assert classes["read as"] == "uint8 6 x 8"
    assert lines["test", "depth"]["values"].endswith(" m")
    assert (lines["test", "image"]["valid %"], lines["test", "image"]["classes"]) == ("", "")


# Bad files


def grey(path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint8)).save(path)


def sixteen_bits(path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH), dtype=np.uint16)).save(path)


def forty_first_class(path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 40, dtype=np.uint8)).save(path)


def colour(path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def small(path):
    Image.fromarray(np.asarray(Image.open(path))[1:]).save(path)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(path):
    np.save(path, np.array([{}], dtype=object))


def whole_numbers(path):
    np.save(path, np.ones((HEIGHT, WIDTH), dtype=np.int32))


def three_dimensions(path):
    np.save(path, np.ones((HEIGHT, WIDTH, 1), dtype=np.float32))


def transposed(path):
    np.save(path, np.ones((WIDTH, HEIGHT), dtype=np.float32))


def empty(path):
    path.write_bytes(b"")


def missing(path):
    path.unlink()


def folder(path):
    path.unlink()
    path.mkdir()


SPOILT = [
    ("img", truncated, "cannot be read as a PNG image"),
    ("img", empty, "cannot be read as a PNG image"),
    ("img", grey, "8-bit grey pixels; this layout has 8-bit RGB"),
    ("img", missing, "is missing"),
    ("img", folder, "is missing"),
    ("seg", truncated, "cannot be read as a PNG image"),
    ("seg", sixteen_bits, "16-bit grey pixels; this layout has 8-bit grey"),
    ("seg", forty_first_class, "holds class 40"),
    ("seg", small, "has 5 x 8 pixels, but its image"),
    ("seg", missing, "is missing"),
    ("normal_mask", grey, "8-bit grey pixels"),
    ("normal_mask", small, "has 5 x 8 pixels, but its image"),
    ("normal_mask", missing, "is missing"),
    ("depth", truncated, "cannot be read as a NumPy array"),
    ("depth", empty, "cannot be read as a NumPy array"),
    ("depth", pickled, "cannot be read as a NumPy array"),
    ("depth", whole_numbers, "holds int32"),
    ("depth", three_dimensions, "in 3 dimensions"),
    ("depth", transposed, "has 8 x 6 pixels, but its image"),
    ("depth", missing, "is missing"),
]


@pytest.mark.parametrize(
    ("where", "spoil", "words"), SPOILT, ids=[f"{spoil.__name__}-{where}" for where, spoil, _ in SPOILT]
)
def test_a_spoilt_file_is_named_once_and_hides_no_other(root, where, spoil, words):
    suffix = "npy" if where == "depth" else "png"
    path = root / where / f"0002.{suffix}"
    spoil(path)
    (root / "seg/0006.png").unlink()
    report = report_of(root)
    assert paths(report.problems, root) == [f"{where}/0002.{suffix}", "seg/0006.png"]
    text = report.problems[0].text
    assert text.startswith(str(path))
    assert words in text
    column = {"img": "image", "seg": "segmentation", "normal_mask": "normals", "depth": "depth"}[where]
    images = {name: tally.images for name, tally in report.tallies["train"].items()}
    assert images == {name: 4 if name == column else 5 for name in images}


def test_all_bad_files_of_one_image_are_named(root):
    for path in ("img/0001.png", "normal_mask/0001.png"):
        (root / path).write_bytes(b"no picture")
    (root / "seg/0001.png").unlink()
    transposed(root / "depth/0001.npy")
    assert paths(report_of(root).problems, root) == ["img/0001.png", "seg/0001.png", "normal_mask/0001.png"]
    colour(root / "img/0001.png")
    assert paths(report_of(root).problems, root) == ["seg/0001.png", "normal_mask/0001.png", "depth/0001.npy"]


def test_an_image_of_another_size_is_told_of_by_each_of_its_labels(root):
    small(root / "img/0001.png")
    report = report_of(root)
    assert paths(report.problems, root) == ["seg/0001.png", "normal_mask/0001.png", "depth/0001.npy"]
    assert all(f"its image {root / 'img/0001.png'} has 5 x 8" in problem.text for problem in report.problems)


def test_a_bad_file_that_is_listed_in_two_splits_is_named_once(root):
    listed = json.loads((root / INDEX).read_text())
    listed["test"].append(listed["train"][0])
    (root / INDEX).write_text(json.dumps(listed))
    forty_first_class(root / "seg/0000.png")
    (root / "depth/0000.npy").unlink()
    report = report_of(root)
    assert paths(report.problems, root) == ["seg/0000.png", "depth/0000.npy"]
    assert paths(report.warnings, root)[0] == "img/0000.png"
    assert "both in training and in test" in report.warnings[0].text


# The index


def test_an_index_that_cannot_be_read_is_the_only_problem(root):
    (root / INDEX).write_text("{")
    report = report_of(root)
    (problem,) = report.problems
    assert problem.path == root
    assert f"{root / INDEX} cannot be read as JSON" in problem.text
    assert json.loads(json.dumps(report.as_json()))["problems"][0]["text"] == problem.text
    assert report_table(report)[1] == []


def test_an_image_that_is_listed_twice_and_an_empty_split_are_problems(root):
    listed = json.loads((root / INDEX).read_text())
    (root / INDEX).write_text(json.dumps({"train": [*listed["train"], listed["train"][1]], "test": []}))
    texts = [problem.text for problem in report_of(root).problems]
    assert texts == [
        f"{root / 'img/0001.png'} is listed twice in 'train'. List it once.",
        f"{root} lists no 'test' images.",
    ]


# Warnings


def test_other_numbers_of_images_than_known_are_warned_of(root):
    texts = [warning.text for warning in report_of(root).warnings]
    assert texts == [
        f"{root} has 5 'train' images; all of nyuv2-3task are 795.",
        f"{root} has 2 'test' images; all of nyuv2-3task are 654.",
    ]
    complete = replace(DATASET, files=replace(DATASET.files, sizes={"train": 5, "test": 2}))
    assert report_of(root, complete).warnings == ()


def test_classes_that_are_never_seen_are_warned_of(root):
    for number in range(7):
        path = root / f"seg/{number:04}.png"
        classes = np.array(Image.open(path))
        classes[(classes == 7) | (classes == 39)] = 0
        Image.fromarray(classes).save(path)
    text = f"{root} has no pixel of 2 of the 40 classes: 7, 39."
    assert text in [warning.text for warning in report_of(root).warnings]
    assert text not in [warning.text for warning in report_of(root, limit=3).warnings], (
        "a part lacks classes anyway"
    )


def test_an_image_without_a_label_is_warned_of(root):
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)).save(root / "seg/0003.png")
    np.save(root / "depth/0005.npy", np.zeros((HEIGHT, WIDTH), dtype=np.float32))
    report = report_of(root)
    assert report.problems == ()
    assert paths(report.warnings, root)[:2] == ["seg/0003.png", "depth/0005.npy"]
    assert "has no pixel with a label" in report.warnings[0].text


# A limit


def test_a_limit_reads_so_many_of_each_split_evenly_spread(root):
    opened = []

    def image(place):
        opened.append(place.path.name)
        return LAYOUT.image(place)

    found = Found(replace(LAYOUT, image=image), root)
    report = verify(DATASET, found, 1, lambda count: None, 3)
    assert opened == ["0000.png", "0001.png", "0003.png", "0005.png", "0006.png"]
    assert report.listed["train"] == 5
    assert report.tallies["train"]["image"].images == 3


def test_a_limit_still_names_files_that_are_missing(root):
    (root / "seg/0004.png").unlink()
    forty_first_class(root / "seg/0002.png")
    assert paths(report_of(root, limit=1).problems, root) == ["seg/0004.png"]


# Layouts of other kinds


def rows_layout(path, count, **changes):
    """Return a layout of `count` images in the rows of one file, with one task."""
    entries = tuple({"image": (Place(path, row),), "segmentation": (Place(path, row),)} for row in range(count))
    values = {
        "read": lambda place: (np.full((2, 2), place.row, dtype=np.uint8),),
        "decode": lambda stored, labels, protocol: (stored[0].astype(np.int64), np.ones((2, 2), dtype=bool)),
        "classes": (40,),
    }
    return replace(
        LAYOUT,
        index=lambda root, tasks: Index(train=entries, test=entries[:1], note="made up"),
        image=lambda place: np.full((3, 2, 2), place.row, dtype=np.uint8),
        columns={"segmentation": Column(**values | changes)},
    )


ONE_TASK = replace(DATASET, labels=(Labels("segmentation", classes=40),))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "all.bin"
    path.write_bytes(b"12345")
    return path


def verify_rows(rows, count=3, workers=2, advance=lambda count: None, **changes):
    return verify(ONE_TASK, Found(rows_layout(rows, count, **changes), rows.parent), workers, advance)


def test_a_file_of_many_images_is_counted_once(rows):
    report = verify_rows(rows)
    tally = report.tallies["train"]["segmentation"]
    assert (tally.images, tally.files, tally.shared) == (3, 0, {rows: 5})
    content = tally.as_json()
    assert (content["files"], content["bytes"]) == (1, 5)
    assert content["pixels_by_class"] == {"0": 4, "1": 4, "2": 4}
    title, lines, headings = report_table(report)
    assert title.endswith("; made up")
    assert lines[1][headings.index("files")] == "1"


def test_an_image_of_a_file_of_many_is_named_with_its_number(rows):
    report = verify_rows(rows, decode=lambda stored, labels, protocol: (stored[0] + 39, stored[0] >= 0))
    assert [problem.text for problem in report.problems] == [
        f"{rows}, image 1 holds classes 40 to 40; they must be 0 to 39. Replace the file.",
        f"{rows}, image 2 holds classes 41 to 41; they must be 0 to 39. Replace the file.",
    ]
    assert report.tallies["train"]["segmentation"].images == 1


def test_negative_classes_and_valid_labels_that_are_no_numbers_are_problems(rows):
    def decode(stored, labels, protocol):
        target = stored[0].astype(np.int64) - (stored[0] == 1)
        target[:, 1] -= stored[0][:, 1] == 1
        return target, np.ones((2, 2), dtype=bool)

    texts = [problem.text for problem in verify_rows(rows, decode=decode).problems]
    assert texts == [f"{rows}, image 1 holds classes -1 to 0; they must be 0 to 39. Replace the file."]
    for value in (np.nan, np.inf):
        report = verify_rows(
            rows, decode=lambda stored, labels, protocol, value=value: (stored[0] + value, stored[0] == 1)
        )
        assert [problem.text for problem in report.problems] == [
            f"{rows}, image 1 holds labels that are no finite numbers. Replace the file."
        ]


def test_an_error_that_a_layout_should_not_raise_is_called_a_bug_of_it(rows):
    def read(place):
        if place.row == 1:
            raise ZeroDivisionError("by nothing")
        return (np.zeros((2, 2), dtype=np.uint8),)

    report = verify_rows(rows, read=read)
    assert [problem.text for problem in report.problems] == [
        f"{rows}, image 1: ZeroDivisionError: by nothing. This is a bug in layout 'adashare'."
    ]
    assert report.tallies["train"]["segmentation"].images == 2


def test_of_several_files_of_a_label_the_bad_one_is_named(tmp_path):
    parts = [tmp_path / name for name in ("one", "two")]
    parts[0].write_bytes(b"12")

    def read(*places):
        raise DataError(f"{places[1]} is empty. Replace the file.")

    layout = rows_layout(parts[0], 1, read=read)
    entry = {"image": (Place(parts[0]),), "segmentation": tuple(map(Place, parts))}
    layout = replace(
        layout, index=lambda root, tasks: Index(train=(entry,), test=()), image=lambda place: np.ones((3, 2, 2))
    )
    found = Found(layout, tmp_path)
    assert "is missing" in verify(ONE_TASK, found, 1, lambda count: None).problems[1].text
    parts[1].touch()
    problem = verify(ONE_TASK, found, 1, lambda count: None).problems[1]
    assert (problem.path, problem.text) == (parts[1], f"{parts[1]} is empty. Replace the file.")


def test_images_of_many_sizes_are_summed_up(rows):
    shapes = [(2, 2), (2, 2), (2, 2), (3, 2), (3, 2), (4, 2), (5, 2)]
    layout = replace(
        rows_layout(
            rows,
            len(shapes),
            read=lambda place: (np.zeros(shapes[place.row], dtype=np.uint8),),
            decode=lambda stored, labels, protocol: (stored[0], stored[0] == 0),
        ),
        image=lambda place: np.zeros((3, *shapes[place.row]), dtype=np.uint8),
    )
    report = verify(ONE_TASK, Found(layout, rows.parent), 1, lambda count: None)
    _, lines, headings = report_table(report)
    assert lines[1][headings.index("read as")] == "uint8 2 x 2 or 3 x 2 or 2 other shapes"


def test_a_layout_without_the_labels_is_refused(root):
    lacking = replace(LAYOUT, columns={name: LAYOUT.columns[name] for name in ("segmentation", "normals")})
    with pytest.raises(
        DataError, match="nyuv2-3task needs labels for 'depth', which layout 'adashare' does not have"
    ):
        verify(DATASET, Found(lacking, root), 1, lambda count: None)


# Memory and interruption


def test_images_are_not_read_far_ahead(rows):
    started, done, ahead = [], [], []

    def read(place):
        started.append(place.row)
        return (np.zeros((2, 2), dtype=np.uint8),)

    def advance(count):
        done.append(count)
        ahead.append(len(started) - len(done))
        time.sleep(0.001)

    verify_rows(rows, count=60, workers=3, advance=advance, read=read)
    assert len(done) == 61
    assert max(ahead) <= 7


def test_an_interruption_stops_all_threads(rows):
    threads = threading.active_count()
    started = []

    def read(place):
        started.append(place.row)
        return (np.zeros((2, 2), dtype=np.uint8),)

    def advance(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_rows(rows, count=60, workers=3, advance=advance, read=read)
    assert threading.active_count() == threads
    assert len(started) <= 8


# Real photographs


def test_real_photographs_give_the_known_numbers(samples_folder):
    report = report_of(samples_folder / "nyuv2_adashare")
    assert report.problems == ()
    assert len([warning for warning in report.warnings if "both in training" in warning.text]) == 2
    read = report.tallies["test"]
    assert read["segmentation"].valid == 267361 + 274364
    assert read["normals"].valid == 227220 - 2953 + 215486 - 2770
    assert read["depth"].valid == read["depth"].pixels == 2 * 480 * 640
    assert (read["depth"].low, read["depth"].high) == pytest.approx((0.7137, 2.7973), abs=5e-5)
