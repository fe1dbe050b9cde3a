"""Tiny-Taskonomy in its four layouts: generated trees, everything that can be wrong with one, and a real view."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import feature, filters

from mtlprune_bench import DISPARSE, STANDARD, DataError, Labels, Sample
from mtlprune_bench.data.locate import locate
from mtlprune_bench.data.photos import check_labels, open_photos
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.datasets.taskonomy import FILES
from mtlprune_bench.plugins.datasets.taskonomy.columns import (
    CLASS_WEIGHTS,
    decode_classes,
    decode_depth,
    decode_normals,
    halve,
)
from mtlprune_bench.plugins.datasets.taskonomy.layouts import LAYOUTS
from mtlprune_bench.plugins.datasets.taskonomy.listing import DOMAINS, KEYS, TINY
from mtlprune_bench.plugins.tasks.depth import rescale_code

BY_NAME = {layout.name: layout for layout in LAYOUTS}
BUILDING_FIRST = BY_NAME["building-first"]
COUNTS = {"train": 2, "validation": 1, "test": 1}
FOLDERS = {
    "building-first": "{building}/{domain}",
    "adapmtl": "{split}/{building}/{domain}",
    "omnitools": "{domain}/taskonomy/{building}",
    "multimae": "{domain}/{building}",
}
SUFFIXES = {
    "rgb": "rgb",
    "segment_semantic": "segmentsemantic",
    "normal": "normal",
    "depth_zbuffer": "depth_zbuffer",
    "keypoints2d": "keypoints2d",
    "edge_texture": "edge_texture",
}
OLD = {
    "segment_semantic": "segmentsemantic",
    "depth_zbuffer": "depth",
    "keypoints2d": "keypoint2d",
    "edge_texture": "edge2d",
}


def blocks(values):
    """Return `values` [..., 16, 16] as blocks of 16 x 16 equal pixels."""
    return values.repeat_interleave(16, -1).repeat_interleave(16, -2)


def canonical(seed):
    """Return a random sample with pixels of every special kind."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(3, 6, 16, 16, generator=generator)
    valid = torch.ones(256, 256, dtype=torch.bool)
    uncertain, unknown = valid.clone(), valid.clone()
    uncertain[:20], unknown[:, 7] = False, False
    normals = torch.nn.functional.normalize(draw[:, 0] - torch.tensor([0.5, 0.5, 0.0])[:, None, None], dim=0)
    targets = {
        "segmentation": torch.where(uncertain, blocks((17 * draw[0, 1]).long()), 255),
        "normals": blocks(normals) * unknown,
        "depth": blocks(1 + 9 * draw[:1, 2]) * unknown,
        "keypoints": blocks(2 * draw[:1, 3] - 1),
        "edges": blocks(2 * draw[:1, 4] - 1),
    }
    masks = {"segmentation": uncertain, "normals": unknown, "depth": unknown, "keypoints": valid, "edges": valid}
    image = blocks((256 * draw[:, 5]).to(torch.uint8)).clone()
    image[:, 0, 0] = torch.tensor([255, 10, 0])
    return Sample.of(image, targets, masks)


SAMPLES = {"train": [canonical(0), canonical(1)], "validation": [canonical(2)], "test": [canonical(3)]}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Return the folder with a tree in each layout."""
    base = tmp_path_factory.mktemp("trees")
    for layout in LAYOUTS:
        layout.write(base / layout.name, SAMPLES)
    return base


@pytest.fixture
def copy(trees, tmp_path):
    def copied(layout):
        return Path(shutil.copytree(trees / layout.name, tmp_path / "taskonomy"))

    return copied


@pytest.fixture
def root(copy):
    return copy(BUILDING_FIRST)


def place(layout, domain, split="train", number=0):
    folder = FOLDERS[layout.name].format(split=KEYS[split], building=TINY[split][0], domain=domain)
    return f"{folder}/point_{number}_view_0_domain_{SUFFIXES[domain]}.png"


def listed(domain, **which):
    return place(BUILDING_FIRST, domain, **which)


def dataset(labels=None):
    known = load_registry().get("datasets", "taskonomy")
    return known if labels is None else replace(known, labels=labels)


def opened(root, layout=BUILDING_FIRST, protocol=STANDARD, labels=None):
    return open_photos(dataset(labels or layout.writes), layout, root.resolve(), protocol)


def check_equal(found, expected):
    """Check a sample that was written and read: equal but for the steps of the files' numbers."""
    assert torch.equal(found.image, expected.image)
    for task, mask in expected.masks.items():
        assert torch.equal(found.masks[task], mask), task
    assert torch.equal(found.targets["segmentation"], expected.targets["segmentation"])
    steps = {"normals": 1.5 / 127.5, "depth": 0.51 / 512, "keypoints": 1.01 / 328, "edges": 1.01 / 5243}
    for task, step in steps.items():
        difference = (found.targets[task] - expected.targets[task]).abs().max()
        assert difference <= step, task


def read(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("with_index", [True, False], ids=["index", "listing"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_reads_what_it_writes(copy, layout, with_index):
    root = copy(layout)
    if not with_index:
        (root / "taskonomy.json").unlink()
    splits = opened(root, layout)
    for split, expected in SAMPLES.items():
        samples = getattr(splits, split)
        assert len(samples) == COUNTS[split]
        for number, sample in enumerate(expected):
            check_equal(samples[number], sample)
            shown = samples.entries[number]
            assert [places[0].path for places in shown.values()] == [
                root.resolve() / place(layout, domains[0], split, number) for domains in DOMAINS.values()
            ]
    assert splits.origin == (f"Tiny-Taskonomy, layout {layout.name}, 2 training, 1 validation and 1 test images")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_files_are_in_their_real_form(trees, layout):
    root, sample = trees / layout.name, SAMPLES["test"][0]
    files = {domain: read(root / place(layout, domain, "test")) for domain in SUFFIXES}
    for domain, pixels in files.items():
        assert pixels.shape[:2] == (512, 512)
        assert pixels.dtype == (np.uint8 if domain in ("rgb", "segment_semantic", "normal") else np.uint16)
        for row, column in itertools.product((0, 1), repeat=2):
            assert np.array_equal(pixels[row::2, column::2], pixels[::2, ::2])
    row, column = 100, 40
    at = {domain: pixels[2 * row, 2 * column].tolist() for domain, pixels in files.items()}
    target = {task: value[..., row, column] for task, value in sample.targets.items()}
    assert at["rgb"] == sample.image[:, row, column].tolist()
    assert at["segment_semantic"] == int(target["segmentation"]) + 1
    assert at["normal"] == [round((float(value) + 1) * 127.5) for value in target["normals"]]
    assert at["depth_zbuffer"] == round(512 * float(target["depth"]))
    assert at["keypoints2d"] == round((float(target["keypoints"]) + 1) / 2 * 0.005 * 65536)
    assert at["edge_texture"] == round((float(target["edges"]) + 1) / 2 * 0.08 * 65536)
    assert (files["segment_semantic"][:40] == 0).all()
    assert (files["normal"][:, 14] == 128).all()
    assert (files["depth_zbuffer"][:, 14] == 65535).all()
    index = json.loads((root / "taskonomy.json").read_text())
    assert index["val"] == [[listed(domain, split="validation") for domain in SUFFIXES]]
    assert {key: len(entries) for key, entries in index.items()} == {"train": 2, "val": 1, "test": 1}
    assert np.load(root / "semseg_prior_factor.npy") == pytest.approx(CLASS_WEIGHTS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_is_recognised_at_its_folder_and_at_the_one_above(trees, copy, layout):
    check_labels(dataset(), layout)
    for folder in (trees / layout.name, copy(layout).parent):
        found = locate(FILES, folder)
        assert found is not None
        assert found.layout is layout
        assert (found.root / "taskonomy.json").is_file()


def test_a_folder_without_images_is_told_from_one_that_holds_something_else(root, tmp_path):
    shutil.rmtree(root / "hanson" / "rgb")
    shutil.rmtree(root / "wiconisco")
    shutil.rmtree(root / "ihlen")
    with pytest.raises(DataError, match=r"The nearest is 'building-first', .* but no \*/rgb/point_\*\.png"):
        locate(FILES, root)
    (tmp_path / "other" / "scene" / "rgb").mkdir(parents=True)
    (tmp_path / "other" / "scene" / "normal").mkdir()
    assert locate(FILES, tmp_path / "other") is None


@pytest.mark.parametrize("with_index", [True, False], ids=["index", "listing"])
@pytest.mark.parametrize("suffix", [True, False], ids=["old file names", "today's file names"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_old_names_are_found(copy, layout, suffix, with_index):
    root = copy(layout)
    for domain, old in OLD.items():
        for path in list(root.rglob(domain)):
            path.rename(path.with_name(old))
        for path in list(root.rglob(f"*_domain_{SUFFIXES[domain]}.png")) if suffix else ():
            path.rename(path.with_name(path.name.replace(SUFFIXES[domain], old)))
    if not with_index:
        (root / "taskonomy.json").unlink()
    splits = opened(root, layout)
    check_equal(splits.train[1], SAMPLES["train"][1])
    check_equal(splits.validation[0], SAMPLES["validation"][0])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_an_index_may_use_old_names_or_the_layouts_own_paths(copy, layout):
    root = copy(layout)
    old = [
        path.replace(domain, OLD.get(domain, domain)).replace(SUFFIXES[domain], OLD.get(domain, domain))
        for domain in SUFFIXES
        for path in [listed(domain)]
    ]
    own = [place(layout, domain, "test") for domain in SUFFIXES]
    (root / "taskonomy.json").write_text(json.dumps({"train": [old], "test": [own]}))
    splits = opened(root, layout, DISPARSE)
    assert torch.equal(splits.train[0].image, SAMPLES["train"][0].image)
    check_equal(opened(root, layout, replace(STANDARD, select="test")).test[0], SAMPLES["test"][0])


def test_the_tiny_split_is_the_published_one(samples_folder):
    path = samples_folder / "taskonomy_style" / "train_val_test_tiny.csv"
    if not path.is_file():
        pytest.skip("the published split is not here")
    header, *rows = (line.split(",") for line in re.split(r"[\r\n]+", path.read_text().strip()))
    assert header == ["id", "train", "val", "test"]
    assert len(rows) == 35
    for split, key in KEYS.items():
        assert TINY[split] == tuple(row[0] for row in rows if row[header.index(key)] == "1")


def touch(root, building, views, domains=SUFFIXES):
    for (point, view), domain in itertools.product(views, domains):
        path = root / building / domain / f"point_{point}_view_{view}_domain_{SUFFIXES[domain]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def views_of(samples):
    return [tuple(map(int, re.findall(r"\d+", item["image"][0].path.name))) for item in samples.entries]


def test_a_listing_is_in_the_order_of_numbers_and_of_the_split(tmp_path):
    touch(tmp_path, "merom", [(0, 0)])
    touch(tmp_path, "hanson", [(10, 1), (2, 10), (2, 9)])
    touch(tmp_path, "corozal", [(0, 0)])
    touch(tmp_path, "mcdade", [(0, 0), (1, 0)])
    for building in ("cauthron", "adairsville"):
        touch(tmp_path, building, [(0, 0)])
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").touch()
    for stray in (".DS_Store", "._point_0_view_0_domain_rgb.png", "point_0_view_0_domain_rgb.png.part"):
        (tmp_path / "hanson" / "rgb" / stray).touch()
    splits = opened(tmp_path)
    assert views_of(splits.train) == [(2, 9), (2, 10), (10, 1), (0, 0)]
    assert [len(samples) for samples in (splits.validation, splits.test)] == [1, 2]
    assert splits.origin.endswith("; buildings outside Tiny-Taskonomy left out: 2")
    assert len(opened(tmp_path, protocol=DISPARSE).validation) == 2


def test_a_listing_looks_at_no_file(tmp_path, monkeypatch):
    touch(tmp_path, "hanson", [(number, 0) for number in range(40)])
    touch(tmp_path, "ihlen", [(0, 0)])
    looked = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: looked.append(path.name) or stat(path, **how))
    index = BUILDING_FIRST.index(tmp_path, tuple(DOMAINS)[1:])
    assert len(index.train) == 40
    assert "rgb" in looked
    assert not [name for name in looked if name.endswith(".png")]


def test_a_listing_of_other_buildings_is_refused(tmp_path):
    for building in ("cauthron", "adairsville"):
        touch(tmp_path, building, [(0, 0)])
    with pytest.raises(DataError, match=r"none of the 35 buildings .* such as hanson, but adairsville, cauthron"):
        opened(tmp_path)


def test_a_listing_needs_images_to_train_on_and_to_test_on(tmp_path):
    touch(tmp_path, "ihlen", [(0, 0)])
    with pytest.raises(DataError, match="lists no 'train' images"):
        opened(tmp_path)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_missing_files_are_counted_unless_they_are_not_needed(root, what):
    (root / "taskonomy.json").unlink()
    path = root / listed("depth_zbuffer")
    if what == "file":
        path.unlink()
    else:
        shutil.rmtree(path.parent)
    count = 1 if what == "file" else 2
    with pytest.raises(DataError, match=rf"{count} of the files .* the first is .*{re.escape(path.name)}"):
        opened(root)
    sample = opened(root, labels=(Labels("normals"), Labels("edges"))).train[0]
    assert set(sample.targets) == {"normals", "edges"}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("way", ["above", "building", "absolute", "link"])
def test_an_index_may_not_lead_out(copy, tmp_path, layout, way):
    root = copy(layout)
    for domain in SUFFIXES:
        good = [listed(domain, split="test") for domain in SUFFIXES]
        inside, column = root / place(layout, domain), list(SUFFIXES).index(domain)
        outside = tmp_path / "outside" / domain / inside.name
        outside.parent.mkdir(parents=True)
        shutil.copy(inside, outside)
        if way == "link":
            inside.unlink()
            inside.symlink_to(outside)
        bad = good.copy()
        bad[column] = {
            "above": f"../outside/{domain}/{outside.name}",
            "building": f"../{domain}/{outside.name}",
            "absolute": str(outside),
            "link": listed(domain),
        }[way]
        (root / "taskonomy.json").write_text(json.dumps({"train": [good, bad], "test": [good]}))
        with pytest.raises(DataError, match=r"taskonomy\.json: entry 1 of 'train' names .*, which leads out of"):
            opened(root, layout)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must be an object with 'train' and 'val' and 'test'"),
        ('{"train": [["hanson/rgb/point_0_view_0_domain_rgb.png"]]}', "entry 0 of 'train' has 1 paths"),
        ('{"train": [], "test": []}', "lists no 'train' images"),
        (json.dumps({"train": [[f"hanson/rgb/{n}.png" for n in range(6)]]}), "lists no 'test' images"),
    ],
)
def test_damaged_indices_are_named(root, content, message):
    (root / "taskonomy.json").write_text(content)
    with pytest.raises(DataError, match=message):
        opened(root)


def test_images_that_an_index_lists_and_nobody_has_are_missing(root):
    entry = [listed(domain).replace("hanson", "onaga") for domain in SUFFIXES]
    (root / "taskonomy.json").write_text(json.dumps({"train": [entry], "test": [entry]}))
    with pytest.raises(
        DataError, match=r"6 of the files .* the first is .*/onaga/rgb/point_0_view_0_domain_rgb\.png"
    ):
        opened(root)


def picture(shape, value=0, dtype=np.uint8):
    return lambda path: Image.fromarray(np.full(shape, value, dtype=dtype)).save(path)


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def one_of_class(value):
    """Return what writes a file with one pixel of a class, one that halving leaves out."""

    def write(path):
        classes = np.ones((512, 512), np.uint8)
        classes[3, 3] = value
        Image.fromarray(classes).save(path)

    return write


@pytest.mark.parametrize(
    ("domain", "spoil", "message"),
    [
        ("rgb", truncated, "cannot be read as a PNG image"),
        ("rgb", picture((512, 512)), "holds 8-bit grey pixels; this layout has 8-bit RGB"),
        ("rgb", picture((512, 256, 3)), "has 512 x 256 pixels; it must have 512 x 512"),
        ("rgb", picture((1024, 1024, 3)), "has 1024 x 1024 pixels"),
        ("segment_semantic", picture((512, 512, 3)), "holds 8-bit RGB pixels; this layout has 8-bit grey"),
        ("segment_semantic", one_of_class(18), "holds class 18; classes are 1 to 17, and 0 for uncertain"),
        ("segment_semantic", one_of_class(255), "holds class 255"),
        ("segment_semantic", picture((128, 128)), "has 128 x 128 pixels"),
        ("normal", picture((512, 512, 4)), "'RGBA' pixels; this layout has 8-bit RGB"),
        ("normal", picture((384, 384, 3)), "has 384 x 384 pixels"),
        ("depth_zbuffer", picture((512, 512)), "holds 8-bit grey pixels; this layout has 16-bit grey"),
        ("depth_zbuffer", picture((500, 512), 9, np.uint16), "has 500 x 512 pixels"),
        ("depth_zbuffer", truncated, "cannot be read as a PNG image"),
        ("keypoints2d", picture((512, 512)), "holds 8-bit grey pixels; this layout has 16-bit grey"),
        ("edge_texture", picture((512, 512, 3)), "holds 8-bit RGB pixels; this layout has 16-bit grey"),
        ("edge_texture", lambda path: path.unlink(), "cannot be read as a PNG image"),
    ],
)
def test_bad_files_are_named_and_nothing_is_read_in_their_place(root, domain, spoil, message):
    splits = opened(root)
    path = root / listed(domain, number=1)
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        splits.train[1]
    assert str(path) in str(caught.value)
    check_equal(splits.train[0], SAMPLES["train"][0])


def test_files_that_were_made_smaller_are_taken_as_they_are(root):
    for path in root.rglob("*.png"):
        Image.fromarray(read(path)[::2, ::2]).save(path)
    check_equal(opened(root).train[0], SAMPLES["train"][0])


def test_every_second_pixel_is_taken_of_images_and_labels():
    pixels = np.arange(512 * 512, dtype=np.int64).reshape(512, 512)
    halved = halve(pixels, "a file")
    assert halved.shape == (256, 256)
    rows, columns = np.indices((256, 256))
    assert np.array_equal(halved, 512 * 2 * rows + 2 * columns)
    half = pixels[:256, :256]
    assert np.array_equal(halve(half, "a file"), half)


def test_images_are_red_first(root):
    assert opened(root).train[0].image[:, 0, 0].tolist() == [255, 10, 0]
    assert read(root / listed("rgb"))[0, 0].tolist() == [255, 10, 0]


def test_uncertain_pixels_have_no_class_or_are_background():
    stored = (np.array([[0, 1, 2, 17]], np.uint8),)
    labels = Labels("segmentation", classes=17)
    classes, mask = decode_classes(stored, labels, STANDARD)
    assert (classes.tolist(), mask.tolist()) == ([[255, 0, 1, 16]], [[False, True, True, True]])
    classes, mask = decode_classes(stored, labels, DISPARSE)
    assert (classes.tolist(), mask.tolist()) == ([[0, 0, 1, 16]], [[True] * 4])
    assert classes.dtype == np.int64


CODES = [(127, 127, 127), (128, 128, 128), (127, 128, 127), (255, 128, 128), (128, 255, 128), (60, 90, 20)]


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
def test_both_protocols_decode_normals_and_differ_in_those_of_zero_vectors(protocol):
    codes = np.array(CODES, np.uint8).T[:, None]
    normals, mask = decode_normals((codes,), Labels("normals"), protocol)
    assert normals.dtype == np.float32
    assert mask[0].tolist() == [protocol is DISPARSE] * 3 + [True] * 3
    for number, code in enumerate(CODES):
        vector = np.array(code) / 255 * 2 - 1
        expected = vector / np.linalg.norm(vector) if mask[0, number] else np.zeros(3)
        assert normals[:, 0, number] == pytest.approx(expected, abs=1e-5)
    assert normals[:, 0, 3] == pytest.approx([1, 0.0039, 0.0039], abs=1e-4)


VALUES = [0, 1, 512, 20_000, 64_499, 64_500, 65_534, 65_535]


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
def test_depth_in_both_units(protocol):
    stored = (np.array([[VALUES]], np.uint16),)
    code, known = decode_depth(stored, Labels("depth", unit="log code"), protocol)
    depth, measured = decode_depth(stored, Labels("depth", unit="m"), protocol)
    assert (code.shape, known.shape, code.dtype, depth.dtype) == ((1, 1, 8), (1, 8), np.float32, np.float32)
    assert known[0].tolist() == [False] + [True] * 4 + [False] * 3
    assert measured[0].tolist() == [False] + [True] * 6 + [False]
    assert not code[0][~known].any()
    assert not depth[0][~measured].any()
    for number, value in enumerate(VALUES[1:5], start=1):
        assert code[0, 0, number] == pytest.approx(math.log(1 + value) / math.log(65536), abs=1e-6)
        assert depth[0, 0, number] == value / 512
        assert 65536 ** float(code[0, 0, number]) - 1 == pytest.approx(value, rel=1e-5)


def test_enlarging_divides_the_depth_that_a_code_stands_for():
    stored = np.array([[[40, 512, 5000, 60_000]]], np.uint16)
    code, _ = decode_depth((stored,), Labels("depth", unit="log code"), STANDARD)
    for scale in (0.5, 1.0, 1.37):
        divided = np.log1p(stored / scale) / np.log(65536)
        assert rescale_code(torch.from_numpy(code), scale).numpy() == pytest.approx(divided, abs=1e-6)


@pytest.mark.parametrize(("task", "ceiling"), [("keypoints", 0.005), ("edges", 0.08)])
def test_strengths_are_divided_by_65536_cut_and_squashed(task, ceiling):
    values = [0, 1, 100, int(65536 * ceiling), int(65536 * ceiling) + 1, 65_535]
    decode = BUILDING_FIRST.columns[task].decode
    squashed, mask = decode((np.array([[values]], np.uint16),), Labels(task), STANDARD)
    expected = [2 * min(value / 65536, ceiling) / ceiling - 1 for value in values]
    assert squashed[0, 0] == pytest.approx(expected, abs=1e-6)
    assert squashed[0, 0, -1] == 1
    assert mask.all()


def test_class_weights_that_differ_are_warned_of(root):
    path = root / "semseg_prior_factor.npy"
    np.save(path, np.array(CLASS_WEIGHTS) + 5e-4)
    opened(root)
    for weights in (np.array(CLASS_WEIGHTS) + 2e-3, np.ones(16), np.full(17, np.nan)):
        np.save(path, weights)
        with pytest.warns(UserWarning, match=re.escape(f"{path} differs from the class weights")):
            opened(root)
    opened(root, labels=(Labels("normals"),))
    path.write_bytes(b"no array")
    with pytest.raises(DataError, match=re.escape(f"{path} cannot be read as a NumPy array")):
        opened(root)


@pytest.fixture
def real(samples_folder):
    """Return point 202, view 5, as both protocols read it."""
    found = locate(FILES, samples_folder / "taskonomy_style")
    assert found is not None
    assert found.layout.name == "building-first"
    with pytest.warns(UserWarning, match="both for training and for test"):
        return {
            protocol: open_photos(dataset(), found.layout, found.root, protocol).test[0]
            for protocol in (STANDARD, DISPARSE)
        }


def test_a_real_view_has_the_numbers_that_its_raw_bytes_give(real):
    for sample in real.values():
        assert sample.image.shape == (3, 256, 256)
        depth = sample.targets["depth"][0][sample.masks["depth"]].double()
        assert len(depth) == 60_420
        assert [round(float(number), 5) for number in (depth.mean(), depth.min(), depth.max())] == [
            0.66954,
            0.56232,
            0.75079,
        ]
        assert round(float(sample.targets["keypoints"].double().mean()), 5) == -0.59407
        assert round(float(sample.targets["edges"].double().mean()), 5) == -0.58704
        classes, counts = sample.targets["segmentation"].unique(return_counts=True)
        assert dict(zip(classes.tolist(), counts.tolist(), strict=True)) == {0: 51802, 2: 854, 3: 12464, 6: 416}
        assert torch.equal(sample.targets["normals"].norm(dim=0) > 0.5, sample.masks["normals"])
    # Where no surface was hit there is neither a depth nor a normal.
    assert torch.equal(real[STANDARD].masks["normals"], real[STANDARD].masks["depth"])
    assert real[DISPARSE].masks["normals"].all()


def test_a_real_views_normals_are_those_of_its_depth(samples_folder):
    """Neighbouring points of the surface, for a focal length of 200 pixels, span what normals stand on."""
    found = locate(FILES, samples_folder / "taskonomy_style")
    with pytest.warns(UserWarning, match="both for training and for test"):
        sample = opened(found.root).test[0]
    depth = sample.targets["depth"][0].double().numpy()
    rows, columns = np.indices(depth.shape) - 127.5
    points = np.stack([columns * depth / 200, rows * depth / 200, depth])
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    along = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    spanned = np.cross(along, across, axis=0)
    spanned /= np.linalg.norm(spanned, axis=0) + 1e-12
    cosines = (spanned * sample.targets["normals"][:, 1:-1, 1:-1].numpy()).sum(0)
    inside = (sample.masks["normals"] & sample.masks["depth"])[1:-1, 1:-1].numpy()
    assert np.median(cosines[inside]) > 0.99


def test_a_real_views_keypoints_and_edges_follow_from_its_image(real, samples_folder):
    building = samples_folder / "taskonomy_style" / "taskonomy_unknown"
    picture = Image.open(building / "rgb" / "point_202_view_5_domain_rgb.png")
    grey = np.asarray(picture.convert("L")) / 255
    blurred = filters.gaussian(grey, 3, mode="constant") / filters.gaussian(np.ones_like(grey), 3, mode="constant")
    corners = np.max([feature.hessian_matrix_det(grey, sigma) for sigma in np.linspace(1, 30, 10)], axis=0)
    for task, strength, ceiling in (("edges", filters.sobel(blurred), 0.08), ("keypoints", corners, 0.005)):
        expected = 2 * np.clip(strength[::2, ::2], 0, ceiling) / ceiling - 1
        found = real[STANDARD].targets[task][0].numpy()
        assert np.abs(found - expected).mean() < 0.02, task
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99, task
