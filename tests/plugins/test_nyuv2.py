"""NYU-v2 in AdaShare's layout: a generated tree, everything that can be wrong with it, and real photographs."""

from __future__ import annotations

import itertools
import json
import re
import shutil

import numpy as np
import pytest
import torch
from nyuv2_trees import ALL, FILES, HEIGHT, NORMALS, SEGMENTATION, THIRTEEN, WIDTH, opened
from PIL import Image

from mtlprune_bench import DISPARSE, STANDARD, DataError, Labels
from mtlprune_bench.data.locate import locate
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.datasets.nyuv2 import FINETUNE, TRAIN

INDEX = "nyu_v2_3task.json"


def entry(name):
    return [f"img/{name}.png", f"seg/{name}.png", f"normal_mask/{name}.png", f"depth/{name}.npy"]


def write_photo(root, name, seed):
    """Write the four files of a photograph: random, with pixels of every special kind."""
    rng = np.random.default_rng(seed)
    image, classes, normals, depth = (root / path for path in entry(name))
    for path in (image, classes, normals, depth):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(image)
    labels = rng.integers(0, 40, (HEIGHT, WIDTH), dtype=np.uint8)
    labels[0] = 255
    Image.fromarray(labels).save(classes)
    vectors = rng.normal(size=(HEIGHT, WIDTH, 3))
    codes = np.floor((vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) + 1) * 127.5).astype(np.uint8)
    codes[0], codes[1, 0] = 255, 127
    Image.fromarray(codes).save(normals)
    metres = rng.uniform(1, 5, (HEIGHT, WIDTH)).astype(np.float32)
    metres[2, 0], metres[2, 1], metres[2, 2] = 0, np.nan, np.inf
    np.save(depth, metres)


def make_tree(root, train, test):
    names = [f"{number:04d}" for number in range(train + test)]
    for seed, name in enumerate(names):
        write_photo(root, name, seed)
    write_index(root, {"train": [entry(n) for n in names[:train]], "test": [entry(n) for n in names[train:]]})
    return root


def write_index(root, content):
    (root / INDEX).write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path):
    return make_tree(tmp_path / "data", 2, 1)


def test_reads_every_label_in_canonical_form(root):
    splits = opened(root)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 0, 1)
    sample = splits.train[1]
    pixels, classes, codes = (np.asarray(Image.open(root / path)) for path in entry("0001")[:3])
    metres = np.load(root / entry("0001")[3])
    assert sample.image.dtype == torch.uint8
    assert np.array_equal(sample.image.permute(1, 2, 0), pixels)
    assert sample.targets["segmentation"].dtype == torch.int64
    assert np.array_equal(sample.targets["segmentation"], classes)
    assert np.array_equal(sample.masks["segmentation"], classes != 255)
    normals, mask = sample.targets["normals"], sample.masks["normals"]
    for row, column in itertools.product(range(HEIGHT), range(WIDTH)):
        code = codes[row, column].astype(int)
        valid = code.tolist() not in ([255, 255, 255], [127, 127, 127])
        assert bool(mask[row, column]) == valid
        red, green, blue = (code + 0.5) / 127.5 - 1
        expected = np.array([red, -blue, green]) / max(np.linalg.norm([red, green, blue]), 1e-9) * valid
        assert np.allclose(normals[:, row, column], expected, atol=1e-6)
    assert int((~mask).sum()) == WIDTH + 1
    known = np.isfinite(metres) & (metres > 0)
    assert int((~known).sum()) == 3
    assert np.array_equal(sample.masks["depth"], known)
    assert np.array_equal(sample.targets["depth"][0], np.where(known, metres, 0))
    assert [sample.targets[label.task].shape for label in ALL] == [
        (HEIGHT, WIDTH),
        (3, HEIGHT, WIDTH),
        (1, HEIGHT, WIDTH),
    ]


def test_disparse_takes_raw_codes_for_vectors_and_counts_zero_normals(root):
    sample = opened(root, protocol=DISPARSE).train[0]
    codes = np.asarray(Image.open(root / entry("0000")[2])).astype(np.float64)
    valid = (codes != 255).all(-1)
    assert np.array_equal(sample.masks["normals"], valid)
    assert sample.masks["normals"][1, 0]
    assert torch.allclose(sample.targets["normals"][:, 1, 0], torch.full((3,), 3**-0.5))
    lengths = np.linalg.norm(codes, axis=-1, keepdims=True)
    blue_first = np.moveaxis((codes / lengths)[..., ::-1] * valid[..., None], -1, 0)
    assert np.allclose(sample.targets["normals"], blue_first, atol=1e-6)


def test_only_the_labels_asked_for_are_read(root):
    shutil.rmtree(root / "depth")
    sample = opened(root, labels=(SEGMENTATION, NORMALS)).train[0]
    assert set(sample.targets) == set(sample.masks) == {"segmentation", "normals"}
    with pytest.raises(DataError, match=r"3 of the files that .* are missing; the first is .*0000\.npy"):
        opened(root)


def test_samples_are_a_function_of_their_index(root):
    train = opened(root).train
    assert torch.equal(train[0].image, train[0].image)
    assert not torch.equal(train[0].image, train[1].image)
    for index in (2, -1):
        with pytest.raises(IndexError, match=f"no image {index} among 2"):
            train[index]


@pytest.mark.parametrize("count", [9, 10, 23])
def test_standard_holds_out_every_tenth_training_image(tmp_path, count):
    splits = opened(make_tree(tmp_path, count, 1), labels=(SEGMENTATION,))
    held = [f"{number:04d}.png" for number in range(count) if number % 10 == 9]
    assert [item["image"][0].path.name for item in splits.validation.entries] == held
    kept = [item["image"][0].path.name for item in splits.train.entries]
    assert kept == [f"{number:04d}.png" for number in range(count) if number % 10 != 9]
    words = f" ({len(held)} of them held out)" if held else ""
    assert splits.origin == f"NYU-v2, layout adashare, {count} training{words} and 1 test images"


def test_disparse_trains_on_everything_and_validates_on_the_test_set(tmp_path):
    splits = opened(make_tree(tmp_path, 10, 2), protocol=DISPARSE)
    assert len(splits.train) == 10
    assert splits.validation.entries == splits.test.entries
    assert splits.origin == "NYU-v2, layout adashare, 10 training and 2 test images"


def test_the_fingerprint_follows_the_index(root):
    before = opened(root).fingerprint
    assert opened(root, protocol=DISPARSE).fingerprint == before
    write_index(root, {"train": [entry("0000")], "test": [entry("0002")]})
    assert opened(root).fingerprint != before


def test_mean_is_the_releases_in_rgb(root):
    splits = opened(root)
    assert [round(255 * value, 8) for value in splits.mean] == [122.67891434, 116.66876762, 104.00698793]
    assert splits.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("name", ["", "nyuv2", "nyu_v2", "NYU_v2", "NYUv2", "nyu-depth-v2"])
def test_root_is_the_folder_or_its_parent(tmp_path, name):
    make_tree(tmp_path / name, 1, 1)
    (tmp_path / "other").mkdir()
    assert len(opened(tmp_path).train) == 1


def test_without_root_or_index_there_is_nothing_to_open(tmp_path, monkeypatch):
    monkeypatch.setattr("mtlprune_bench.data.locate.USUAL", (str(tmp_path),))
    for place in (None, tmp_path, tmp_path / "missing"):
        assert locate(FILES, place) is None
    make_tree(tmp_path / "unrelated", 1, 1)
    assert locate(FILES, tmp_path) is None
    make_tree(tmp_path / "nyu", 1, 1)
    assert locate(FILES, None).root == (tmp_path / "nyu").resolve()


def test_a_part_of_a_layout_is_not_passed_over(root):
    (root / INDEX).unlink()
    with pytest.raises(DataError, match=rf"nearest is 'adashare'.* no {INDEX}\. Known: adashare, mtan, official"):
        opened(root)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            Labels("keypoints"),
            "labels for 'keypoints', which layout 'adashare' does not have; it has segmentation, normals, depth",
        ),
        (Labels("segmentation", classes=14), "needs 14 classes; layout 'adashare' has 40 or 13"),
        (Labels("depth", unit="mm"), "needs depth in mm; layout 'adashare' has m"),
    ],
)
def test_labels_that_the_files_do_not_have(root, labels, message):
    with pytest.raises(DataError, match=message):
        opened(root, (labels,))


GOOD, OTHER = [entry("0000")], [entry("0002")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 200_000, "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        ([], "must be an object with 'train' and 'test'"),
        ({"train": GOOD}, "lists no 'test' images"),
        ({"train": [], "test": GOOD}, "lists no 'train' images"),
        ({"train": GOOD, "test": "all"}, "'test' must be a list of images"),
        ({"train": GOOD * 2, "test": OTHER}, r"0000\.png is listed twice in 'train'"),
        ({"train": GOOD, "test": [*OTHER, [GOOD[0][0], *OTHER[0][1:]], *OTHER]}, "listed twice in 'test'"),
        ({"train": GOOD, "test": [*GOOD, "img"]}, "entry 1 of 'test' is 'img'; it must be a list of paths"),
        ({"train": [[1, 2, 3, 4]], "test": GOOD}, r"entry 0 of 'train' is \[1, 2, 3, 4\]"),
        ({"train": [GOOD[0][:3]], "test": GOOD}, "entry 0 of 'train' has 3 paths; it must have 4: image,"),
        ({"train": [["img/9.png", *GOOD[0][1:]]], "test": GOOD}, r"1 of the files .* the first is .*img/9\.png"),
        ({"train": [["img", *GOOD[0][1:]]], "test": GOOD}, "1 of the files"),
        ({"train": [["img/\0.png", *GOOD[0][1:]]], "test": GOOD}, "which is no path|1 of the files"),
        ({"train": [["../secret.png", *GOOD[0][1:]]], "test": GOOD}, r"names \.\./secret\.png, which leads out"),
    ],
)
def test_bad_indices_are_named(root, content, message):
    if isinstance(content, (list, dict)):
        content = json.dumps(content)
    (root / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        opened(root)
    assert str(root) in str(caught.value)


def test_images_in_training_and_in_test_are_warned_of(root):
    write_index(root, {"train": [*GOOD, entry("0001")], "test": [*OTHER, *GOOD]})
    with pytest.warns(UserWarning, match=r"for test, 1 in all; the first is .*0000\.png"):
        splits = opened(root)
    assert splits.origin == ("NYU-v2, layout adashare, 2 training and 2 test images, 1 OF THEM ALSO TRAINED ON")


@pytest.mark.parametrize("way", ["absolute", "absolute inside", "link to a file", "link to a folder"])
@pytest.mark.parametrize("column", range(4))
def test_files_outside_the_folder_are_refused(root, tmp_path, way, column):
    names = entry("0000")
    outside = tmp_path / "outside"
    shutil.copytree(root, outside)
    target = root / names[column]
    if way == "absolute":
        names[column] = str(outside / names[column])
    elif way == "absolute inside":
        names[column] = str(target)
    elif way == "link to a file":
        target.unlink()
        target.symlink_to(outside / names[column])
    else:
        shutil.rmtree(target.parent)
        target.parent.symlink_to(outside / target.parent.name)
    write_index(root, {"train": [names], "test": GOOD})
    with pytest.raises(DataError, match=f"entry 0 of 'train' names {re.escape(names[column])}, which leads out"):
        opened(root, labels=(SEGMENTATION,))


def test_links_within_the_folder_and_to_it_are_followed(root, tmp_path):
    (root / "img" / "0000.png").rename(root / "picture.png")
    (root / "img" / "0000.png").symlink_to(root / "picture.png")
    (tmp_path / "link").symlink_to(root)
    assert opened(tmp_path / "link").train[0].image.shape == (3, HEIGHT, WIDTH)


def picture(shape, value=0):
    return lambda path: Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(path)


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def array(values):
    return lambda path: np.save(path, values)


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def archive(path):
    with path.open("wb") as file:
        np.savez(file, depth=np.zeros((HEIGHT, WIDTH), np.float32))


@pytest.mark.parametrize(
    ("column", "spoil", "message"),
    [
        (0, lambda path: path.write_text("no picture"), "cannot be read as a PNG image"),
        (0, lambda path: path.write_bytes(b""), "cannot be read as a PNG image"),
        (0, truncated, "cannot be read as a PNG image"),
        (0, lambda path: Image.new("RGB", (WIDTH, HEIGHT)).save(path, format="BMP"), "cannot be read as a PNG"),
        (0, picture((HEIGHT, WIDTH)), "holds 8-bit grey pixels; this layout has 8-bit RGB"),
        (1, truncated, "cannot be read as a PNG image"),
        (1, picture((HEIGHT, WIDTH, 3)), "holds 8-bit RGB pixels; this layout has 8-bit grey"),
        (1, picture((HEIGHT, WIDTH), 40), "holds class 40; classes are 0 to 39, and 255 for none"),
        (1, picture((HEIGHT, WIDTH), 254), "holds class 254"),
        (1, picture((WIDTH, HEIGHT)), "has 8 x 6 pixels, but its image .*0000.png has 6 x 8"),
        (2, picture((HEIGHT, WIDTH, 4)), "holds 'RGBA' pixels; this layout has 8-bit RGB"),
        (2, picture((HEIGHT, WIDTH + 1, 3)), "has 6 x 9 pixels, but its image"),
        (3, pickled, "cannot be read as a NumPy array: .*allow_pickle=False"),
        (3, archive, "cannot be read as a NumPy array: it is an archive"),
        (3, lambda path: path.write_bytes(b""), "cannot be read as a NumPy array"),
        (3, truncated, "cannot be read as a NumPy array"),
        (3, array(np.zeros((HEIGHT, WIDTH), np.uint16)), "holds uint16 in 2 dimensions"),
        (3, array(np.zeros((HEIGHT, WIDTH, 1), np.float32)), "has 2 dimensions of floating-point numbers"),
        (3, array(np.zeros((HEIGHT, 3), np.float32)), "has 6 x 3 pixels, but its image"),
        (3, lambda path: path.unlink(), "cannot be read as a NumPy array"),
    ],
)
def test_bad_files_are_named(root, column, spoil, message):
    splits = opened(root)
    path = root / entry("0000")[column]
    spoil(path)
    with pytest.raises(DataError, match=message) as caught:
        splits.train[0]
    assert str(path) in str(caught.value)
    splits.train[1]


# Real photographs: the numbers of the samples' own README, to the printed digit.
GOLDEN = {
    "0061": (267361, 7, 227220, 2953, (0.003, -0.682, 0.026), (1.7348, 1.2457, 2.4129)),
    "0774": (274364, 12, 215486, 2770, (-0.158, -0.709, -0.038), (1.8768, 0.7137, 2.7973)),
}


def real(samples_folder, **asked):
    """Open the real photographs, each of which is there for training and for test."""
    with pytest.warns(UserWarning, match="both for training and for test, 2 in all"):
        return opened(samples_folder / "nyuv2_adashare", **asked)


@pytest.mark.parametrize(("number", "name"), list(enumerate(GOLDEN)))
def test_real_photographs(samples_folder, number, name):
    classified, classes, valid, zero, normal, depth = GOLDEN[name]
    sample, raw = (real(samples_folder, protocol=protocol).test[number] for protocol in (STANDARD, DISPARSE))
    mask = sample.masks["segmentation"]
    assert int(mask.sum()) == classified
    assert len(sample.targets["segmentation"][mask].unique()) == classes
    mask = sample.masks["normals"]
    assert int(raw.masks["normals"].sum()) == valid
    assert int((raw.masks["normals"] & ~mask).sum()) == zero
    assert int(mask.sum()) == valid - zero
    x, y, z = sample.targets["normals"][:, mask].double().mean(1).tolist()
    assert (round(x, 3), round(z, 3), round(-y, 3)) == normal
    metres = sample.targets["depth"].double()
    assert sample.masks["depth"].all()
    assert tuple(round(value.item(), 4) for value in (metres.mean(), metres.min(), metres.max())) == depth


def test_real_photographs_in_thirteen_classes(samples_folder):
    """The 13 classes equal those of another release of the same photographs, which counts from 1."""
    splits = real(samples_folder, labels=(THIRTEEN,))
    for number, name in enumerate(("0062", "0775")):
        other = np.asarray(Image.open(samples_folder / "nyuv2_meta" / "label13" / f"new_nyu_class13_{name}.png"))
        sample = splits.test[number]
        assert np.array_equal(np.where(sample.masks["segmentation"], sample.targets["segmentation"] + 1, 0), other)


@pytest.mark.parametrize(
    ("name", "steps", "lr", "crop", "decay", "tuning"),
    [
        ("nyuv2", 20_000, 1e-3, 321, (0.5, 4000), (1000, 1e-5, 0.5)),
        ("cityscapes", 20_000, 1e-4, 224, (0.5, 4000), (1000, 1e-5, 0.5)),
        ("taskonomy", 100_000, 1e-4, 224, (0.3, 12_000), (4000, 1e-6, 0.3)),
    ],
)
def test_the_papers_recipes(name, steps, lr, crop, decay, tuning):
    dataset = load_registry().get("datasets", name)
    train, finetune = dataset.train, dataset.finetune
    assert (train.steps, train.lr, train.crop) == (steps, lr, crop)
    assert (train.lr_decay, train.lr_decay_every) == decay
    assert (train.batch, train.weight_decay, train.mirror) == (16, 5e-4, 0.5)
    assert (finetune.steps, finetune.lr, finetune.lr_decay) == tuning
    assert finetune.crop == crop
    assert set(dataset.loss_weights) == {label.task for label in dataset.labels}
    assert dataset.stand_in == "scenes"


def test_the_recipes_learning_rates_decay():
    assert TRAIN.lr_at(3999) == 1e-3
    assert TRAIN.lr_at(19_999) == 1e-3 / 16
    assert FINETUNE.lr_at(999) == 1e-5
