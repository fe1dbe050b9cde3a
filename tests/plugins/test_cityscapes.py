"""Cityscapes: every layout written and read again, what its numbers mean, and all that can be wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtlprune_bench import DISPARSE, STANDARD, DataError, Labels, Place, Recipe, Sample, read_png
from mtlprune_bench.data.locate import locate
from mtlprune_bench.data.photos import open_photos
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.datasets.cityscapes import FILES, arrays, cityscapes, classes, disparity, official
from mtlprune_bench.plugins.tasks import depth as depth_plugin
from mtlprune_bench.plugins.tasks import segmentation as segmentation_plugin
from mtlprune_bench.tasks import Objective
from mtlprune_bench.training.batches import Stream

LAYOUTS = {layout.name: layout for layout in FILES.layouts}
SIZE = HEIGHT, WIDTH = (6, 8)
FACTOR = 0.209313 * 2262.52

# By name, from the table of labels: which of the 19 classes are in which category.
CATEGORIES = {
    "flat": ["road", "sidewalk"],
    "construction": ["building", "wall", "fence"],
    "object": ["pole", "traffic light", "traffic sign"],
    "nature": ["vegetation", "terrain"],
    "sky": ["sky"],
    "human": ["person", "rider"],
    "vehicle": ["car", "truck", "bus", "train", "motorcycle", "bicycle"],
}
NAMES = [name for names in CATEGORIES.values() for name in names]
SEVEN = [number for number, names in enumerate(CATEGORIES.values()) for _ in names]


def dataset(count=19, unit="disparity/65535"):
    return cityscapes("cityscapes", count, unit, "")


def make_sample(seed, count=19, size=SIZE):
    """Return a random canonical sample with every class, void, no disparity, and disparity 2 / 65535."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size[0] * size[1]) % (count + 1)).reshape(size) - 1
    stored = rng.integers(2, 32258, (1, *size))
    stored[0, 0] = 0
    stored[0, 1, :2] = 2
    target = (stored / 65535).astype(np.float32)
    return Sample.of(
        torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8)),
        {"segmentation": torch.from_numpy(labels), "depth": torch.from_numpy(target)},
        {"segmentation": torch.from_numpy(labels >= 0), "depth": torch.from_numpy(stored[0] > 0)},
    )


def written(root, layout, size=SIZE):
    """Write two training images and a test image; return the samples."""
    count = LAYOUTS[layout].writes[0].classes
    splits = {
        "train": [make_sample(0, count, size), make_sample(1, count, size)],
        "test": [make_sample(2, count, size)],
    }
    LAYOUTS[layout].write(root, splits)
    return splits


def opened(root, count=19, unit="disparity/65535", layout=None, protocol=STANDARD):
    found = locate(FILES, root, layout)
    assert found is not None
    return open_photos(dataset(count, unit), found.layout, found.root, protocol)


def check_same(read, sample):
    """Assert that a sample was read as it was written, all but its classes."""
    assert read.image.dtype == torch.uint8
    assert torch.equal(read.image, sample.image)
    target, mask = read.targets["depth"], read.masks["depth"]
    assert (target.dtype, mask.dtype) == (torch.float32, torch.bool)
    assert torch.equal(target, sample.targets["depth"])
    assert torch.equal(mask, sample.masks["depth"])
    assert read.targets["segmentation"].dtype == torch.int64
    assert torch.equal(read.masks["segmentation"], sample.masks["segmentation"])


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE])
@pytest.mark.parametrize(
    ("layout", "count"),
    [
        ("adashare", 19),
        ("adashare", 7),
        ("mtan", 19),
        ("mtan", 7),
        ("mtan-small", 7),
        ("official", 19),
        ("official", 7),
    ],
)
def test_round_trip(tmp_path, layout, count, protocol):
    splits = written(tmp_path, layout)
    assert locate(FILES, tmp_path, None).layout.name == layout
    read = opened(tmp_path, count, protocol=protocol)
    assert (len(read.train), len(read.test)) == (2, 1)
    for ours, theirs in zip([*read.train, *read.test], [*splits["train"], *splits["test"]], strict=True):
        check_same(ours, theirs)
        mask = theirs.masks["segmentation"]
        expected = theirs.targets["segmentation"][mask]
        if count == 7 and layout != "mtan-small":
            expected = torch.tensor(SEVEN)[expected]
        assert torch.equal(ours.targets["segmentation"][mask], expected)
    assert read.origin == f"Cityscapes, layout {layout}, 2 training and 1 test images"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writes_what_it_says_it_reads(layout):
    column = LAYOUTS[layout].columns
    for labels in LAYOUTS[layout].writes:
        assert (labels.classes or labels.unit) in (column[labels.task].classes or column[labels.task].units)


def test_full_size_is_brought_to_a_quarter_and_back(tmp_path):
    splits = written(tmp_path, "official", (256, 512))
    path = tmp_path / "leftImg8bit/val/generated/generated_000000_000000_leftImg8bit.png"
    assert read_png(path, "RGB").shape == (3, 1024, 2048)
    read = opened(tmp_path).test[0]
    check_same(read, splits["test"][0])
    mask = read.masks["segmentation"]
    assert torch.equal(read.targets["segmentation"][mask], splits["test"][0].targets["segmentation"][mask])


def test_images_are_shrunk_by_the_mean_labels_by_the_pixel_below_the_centre(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (1024, 2048, 3), dtype=np.uint8)
    labels = rng.integers(0, 34, (1024, 2048), dtype=np.uint8)
    stored = rng.integers(0, 65536, (1024, 2048), dtype=np.uint16)
    places = [Place(tmp_path / f"{name}.png") for name in "abc"]
    for place, array in zip(places, (pixels, labels, stored), strict=True):
        Image.fromarray(array).save(place.path, compress_level=1)
    means = pixels.reshape(256, 4, 512, 4, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.array_equal(official.read_image(places[0]), np.floor(means + 0.5))
    for row, column in ((0, 0), (100, 7), (255, 511)):
        assert official.read_labels(places[1])[0][row, column] == labels[4 * row + 2, 4 * column + 2]
        assert official.read_disparity(places[2])[0][0, row, column] == stored[4 * row + 2, 4 * column + 2]
    assert official.read_disparity(places[2])[0].dtype == np.uint16


def test_files_of_other_sizes_are_taken_as_they_are(tmp_path):
    written(tmp_path, "official", (128, 256))
    assert opened(tmp_path).test[0].image.shape == (3, 128, 256)


def test_files_of_the_archives_have_the_released_form(tmp_path):
    written(tmp_path, "adashare")
    index = json.loads((tmp_path / "cityscape.json").read_text())
    kinds = ("image", "depth", "label_2", "label_7", "label_19")
    assert index["test"] == [[f"val/{kind}/0.npy" for kind in kinds]]
    image, depth, two, seven, nineteen = (np.load(tmp_path / path) for path in index["train"][1])
    assert (image.shape, image.dtype, depth.shape) == ((*SIZE, 3), np.float32, (*SIZE, 1))
    for row, column in np.ndindex(SIZE):
        among = nineteen[row, column]
        assert seven[row, column] == (-1 if among < 0 else SEVEN[among])
        assert two[row, column] == (-1 if among < 0 else int(among >= NAMES.index("person")))
    assert -1 in nineteen
    assert 18 in nineteen


def test_an_adashare_folder_is_not_taken_for_mtans(tmp_path):
    written(tmp_path, "adashare")
    assert locate(FILES, tmp_path, None).layout.name == "adashare"
    assert len(opened(tmp_path, layout="mtan").train) == 2


# The labels of the 19 classes in their order, and those of each category, also where they are not evaluated.
EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
BY_CATEGORY = (range(7, 11), range(11, 17), range(17, 21), range(21, 23), (23,), (24, 25), range(26, 34))


def test_labels_become_classes_by_the_official_table():
    every = np.arange(34)[None]
    expected = [EVALUATED.index(label) if label in EVALUATED else -1 for label in range(34)]
    target, mask = classes.decode_labels((every,), Labels("segmentation", classes=19), STANDARD)
    assert target[0].tolist() == expected
    assert np.array_equal(mask, target >= 0)
    expected = [next((i for i, ids in enumerate(BY_CATEGORY) if label in ids), -1) for label in range(34)]
    target, mask = classes.decode_labels((every,), Labels("segmentation", classes=7), STANDARD)
    assert target[0].tolist() == expected
    assert np.array_equal(mask[0], every[0] >= 7)
    nineteen = np.arange(-1, 19)[None]
    assert classes.seven_of_nineteen(nineteen)[0].tolist() == [-1, *SEVEN]
    assert classes.encode_labels(nineteen)[0].tolist() == [0, *EVALUATED]


def test_disparity_keeps_stored_numbers_from_two_on(tmp_path):
    stored = np.array([[[0, 1, 2, 3, 32257, 65535]]], dtype=np.uint16)
    expected = [False, False, True, True, True, True]
    for values, decode in (
        ((stored / np.float32(65535)).astype(np.float32), arrays.decode_disparity),
        (stored, official.decode_depth),
    ):
        for protocol in (STANDARD, DISPARSE):
            target, mask = decode((values,), Labels("depth", unit=disparity.UNIT), protocol)
            assert mask[0].tolist() == expected
            assert np.allclose(target[0, 0], np.where(expected, stored[0, 0] / 65535, 0), rtol=1e-6, atol=0)
    assert disparity.encode_fractions(target, mask).tolist() == [[[0, 0, 2, 3, 32257, 65535]]]


def test_depth_in_metres_is_baseline_times_focal_length_over_disparity(tmp_path):
    splits = written(tmp_path, "official")
    read = opened(tmp_path, unit="m").train[1]
    mask = splits["train"][1].masks["depth"]
    assert torch.equal(read.masks["depth"], mask)
    pixels = (splits["train"][1].targets["depth"][0][mask].double() * 65535 - 1) / 256
    assert torch.allclose(read.targets["depth"][0][mask].double(), FACTOR / pixels, rtol=1e-5)
    assert not read.targets["depth"][0][~mask].any()
    # By hand: 10 pixels of disparity are stored as 2561, and 473.575 / 10 = 47.36 m.
    target, mask = disparity.decode_metres(
        np.full((1, 1, 1), 2561, np.uint16), np.full((1, 1, 1), FACTOR, np.float32)
    )
    assert mask.all()
    assert target.item() == pytest.approx(47.3575, abs=1e-3)
    assert target.dtype == np.float32


def test_each_image_has_its_own_camera(tmp_path):
    written(tmp_path, "official")
    path = tmp_path / "camera/train/generated/generated_000000_000001_camera.json"
    before = [sample.targets["depth"] for sample in opened(tmp_path, unit="m").train]
    path.write_text(json.dumps({"extrinsic": {"baseline": 2 * 0.209313}, "intrinsic": {"fx": 2262.52}}))
    after = [sample.targets["depth"] for sample in opened(tmp_path, unit="m").train]
    assert torch.equal(after[0], before[0])
    assert torch.allclose(after[1], 2 * before[1])


def test_only_metres_need_cameras(tmp_path):
    written(tmp_path, "official")
    shutil.rmtree(tmp_path / "camera")
    assert opened(tmp_path).train[0].masks["depth"].any()
    with pytest.raises(DataError, match=r"no folder 'camera' beside 'disparity'.*camera_trainvaltest\.zip"):
        _ = opened(tmp_path, unit="m").train[0].targets


@pytest.mark.parametrize(("unit", "power"), [("disparity/65535", 1), ("m", -1)])
def test_enlarging_by_s_multiplies_disparity_and_divides_metres(tmp_path, unit, power):
    written(tmp_path, "official")
    tasks: list = []
    depth_plugin.register_tasks(tasks.append)
    for protocol, scale in ((STANDARD, 2.0), (DISPARSE, 1.0)):
        splits = opened(tmp_path, unit=unit, protocol=protocol)
        objective = Objective({"depth": tasks[0]}, {"depth": dataset(unit=unit).labels[1]}, {}, protocol)
        recipe = Recipe(batch=1, crop=4, scale_low=2.0, scale_high=2.0)
        batch = Stream(splits, objective, recipe, seed=0).sample(0)
        sources = {
            float(value) * scale**power
            for sample in splits.train
            for value in sample.targets["depth"][0][sample.masks["depth"]]
        }
        values = batch.targets["depth"][batch.masks["depth"][:, None]]
        assert len(values)
        assert all(min(abs(float(value) / source - 1) for source in sources) < 1e-6 for value in values)


def test_void_counts_as_wrong_in_pixel_accuracy_under_disparse_only(tmp_path):
    written(tmp_path, "official")
    metrics: list = []
    segmentation_plugin.register_metrics(metrics.append)
    metric = next(metric for metric in metrics if metric.name == "pixel_accuracy")
    registry = load_registry()
    for protocol in (STANDARD, DISPARSE):
        for name in ("cityscapes", "cityscapes-7", "cityscapes-metric"):
            labels = registry.get("datasets", name).labels[0]
            sample = opened(tmp_path, labels.classes, protocol=protocol).test[0]
            target, mask = sample.targets["segmentation"][None], sample.masks["segmentation"][None]
            perfect = torch.nn.functional.one_hot(target.clamp(min=0), labels.classes).movedim(-1, 1).float()
            state = metric.state(labels, protocol)
            state.update(perfect, target, mask)
            expected = 1.0 if protocol is STANDARD else float(mask.double().mean())
            assert not mask.all()
            assert float(metric.read(state)) == pytest.approx(expected)


def test_real_image(samples_folder, tmp_path):
    shutil.copytree(samples_folder / "cityscapes_small", tmp_path, dirs_exist_ok=True)
    entry = official.OFFICIAL.index(tmp_path, ("segmentation",)).test[0]
    column = official.OFFICIAL.columns["segmentation"]
    assert official.OFFICIAL.image(*entry["image"]).shape == (3, 128, 256)
    stored = column.read(*entry["segmentation"])
    target, mask = column.decode(stored, Labels("segmentation", classes=19), STANDARD)
    assert (int((~mask).sum()), mask.size) == (3874, 32768)
    assert set(np.unique(target)) <= set(range(-1, 19))
    path = str(entry["segmentation"][0]).replace("labelIds", "instanceIds")
    instances = read_png(Path(path), "I;16")
    assert (instances >= 1000).any()
    assert np.array_equal(instances[instances >= 1000] // 1000, stored[0][instances >= 1000])
    # Upstream's own copy differs in 0.23 % of the pixels.
    theirs = read_png(Path(path.replace("instanceIds", "labelTrainIds")), "L")
    assert (np.where(mask, target, 255) != theirs).mean() < 0.003
    seven, wider = column.decode(stored, Labels("segmentation", classes=7), STANDARD)
    assert (wider >= mask).all()
    assert np.array_equal(seven[mask], np.array(SEVEN)[target[mask]])


def test_what_is_registered():
    registry = load_registry()
    for name, count, unit in (
        ("cityscapes", 19, "disparity/65535"),
        ("cityscapes-7", 7, "disparity/65535"),
        ("cityscapes-metric", 19, "m"),
    ):
        found = registry.get("datasets", name)
        segmentation, depth = found.labels
        assert (segmentation.task, segmentation.classes, segmentation.negative_void) == (
            "segmentation",
            count,
            True,
        )
        assert (depth.task, depth.unit) == ("depth", unit)
        assert found.loss_weights == {"segmentation": 1.0, "depth": 20.0}
        assert (found.train.steps, found.train.lr, found.train.crop, found.train.batch) == (20_000, 1e-4, 224, 16)
        assert (found.train.lr_decay, found.train.lr_decay_every, found.train.weight_decay) == (0.5, 4000, 5e-4)
        assert (found.finetune.steps, found.finetune.lr, found.finetune.crop) == (1000, 1e-5, 224)
        assert found.files.sizes == {"train": 2975, "test": 500}
        assert [layout.name for layout in found.files.layouts] == ["adashare", "mtan", "mtan-small", "official"]
        assert [layout.size for layout in found.files.layouts] == [(256, 512), (256, 512), (128, 256), (256, 512)]
        assert (found.stand_in, found.model) == ("scenes", "deeplab-resnet34")
    assert [round(255 * value, 8) for value in FILES.mean] == [122.67891434, 116.66876762, 104.00698793]


def truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def array(shape, value=0, dtype=np.float32):
    return lambda path: np.save(path, np.full(shape, value, dtype=dtype))


def picture(shape, value=0, dtype=np.uint8):
    return lambda path: Image.fromarray(np.full(shape, value, dtype=dtype)).save(path)


def text(content):
    return lambda path: path.write_text(content if isinstance(content, str) else json.dumps(content))


def camera(baseline, focal):
    return text({"extrinsic": {"baseline": baseline}, "intrinsic": {"fx": focal}})


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("layout", ["adashare", "mtan"])
@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("image", truncated, "cannot be read as a NumPy array"),
        ("image", pickled, "cannot be read as a NumPy array: .*allow_pickle=False"),
        ("image", array((HEIGHT, WIDTH)), "holds float32 in 2 dimensions"),
        ("image", array((3, HEIGHT, WIDTH)), "has 8 channels; an image has 3"),
        ("image", array((HEIGHT, WIDTH, 3), 0, np.int32), "holds int32 in 3 dimensions"),
        ("image", array((HEIGHT, WIDTH, 3), 128), r"holds colour 128; known are 0 to 1"),
        ("image", array((HEIGHT, WIDTH, 3), -0.01), r"holds colour -0\.01"),
        ("image", array((HEIGHT, WIDTH, 3), np.nan), "holds colour nan"),
        ("label_7", array((HEIGHT, WIDTH), 7), r"holds class 7; known are 0 to 6, and -1 for none"),
        ("label_19", array((HEIGHT, WIDTH), 19, np.int64), "holds class 19; known are 0 to 18, and -1 for none"),
        ("label_19", array((HEIGHT, WIDTH), 255, np.uint8), "holds class 255"),
        ("label_19", array((HEIGHT, WIDTH), -2, np.int16), "holds class -2"),
        ("label_19", array((HEIGHT, WIDTH), 0.5), r"holds class 0\.5"),
        ("label_19", array((HEIGHT, WIDTH), np.nan), "holds class nan"),
        ("label_19", array((HEIGHT, WIDTH, 1)), "holds float32 in 3 dimensions"),
        ("label_19", array((WIDTH, HEIGHT)), "has 8 x 6 pixels, but its image .* has 6 x 8"),
        ("label_7", truncated, "cannot be read as a NumPy array"),
        ("depth", truncated, "cannot be read as a NumPy array"),
        ("depth", array((HEIGHT, WIDTH, 1), 2), r"holds disparity 2; known are 0 to 1"),
        ("depth", array((HEIGHT, WIDTH, 1), -1), r"holds disparity -1"),
        ("depth", array((HEIGHT, WIDTH, 1), np.nan), "holds disparity nan"),
        ("depth", array((HEIGHT, WIDTH, 2)), "has 2 channels; disparity has one"),
        ("depth", array((HEIGHT, WIDTH, 1, 1)), "holds float32 in 4 dimensions"),
        ("depth", array((HEIGHT, WIDTH, 1), 3, np.uint16), "holds uint16"),
        ("depth", array((HEIGHT, WIDTH - 1, 1)), "has 6 x 7 pixels, but its image"),
    ],
)
def test_bad_arrays_are_named(tmp_path, layout, kind, spoil, message):
    written(tmp_path, layout)
    path = tmp_path / "train" / kind / "0.npy"
    spoil(path)
    train = opened(tmp_path).train
    with pytest.raises(DataError, match=message) as caught:
        train[0]
    assert str(path) in str(caught.value)
    assert train[1].image.shape == (3, HEIGHT, WIDTH)


def test_the_smaller_archive_has_seven_classes(tmp_path):
    written(tmp_path, "mtan-small")
    path = tmp_path / "train" / "label" / "0.npy"
    array((HEIGHT, WIDTH), 7)(path)
    with pytest.raises(DataError, match=r"label/0\.npy holds class 7; known are 0 to 6"):
        opened(tmp_path, 7).train[0]
    with pytest.raises(DataError, match="needs 19 classes; layout 'mtan-small' has 7"):
        opened(tmp_path)


STEM = "generated/generated_000000_000000_"
SUFFIXES = {
    "leftImg8bit": "leftImg8bit.png",
    "gtFine": "gtFine_labelIds.png",
    "disparity": "disparity.png",
    "camera": "camera.json",
}


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("leftImg8bit", truncated, "cannot be read as a PNG image"),
        ("leftImg8bit", picture(SIZE), "holds 8-bit grey pixels; this layout has 8-bit RGB"),
        ("gtFine", truncated, "cannot be read as a PNG image"),
        ("gtFine", picture(SIZE, 34), "holds label 34; labels are 0 to 33"),
        ("gtFine", picture(SIZE, 255), "holds label 255"),
        ("gtFine", picture(SIZE, 7, np.uint16), "holds 16-bit grey pixels; this layout has 8-bit grey"),
        ("gtFine", picture((WIDTH, HEIGHT)), "has 8 x 6 pixels, but its image .* has 6 x 8"),
        ("disparity", truncated, "cannot be read as a PNG image"),
        ("disparity", picture(SIZE, 100), "holds 8-bit grey pixels; this layout has 16-bit grey"),
        ("disparity", picture((HEIGHT, WIDTH + 1), 9, np.uint16), "has 6 x 9 pixels, but its image"),
        ("camera", truncated, r"cannot be read as a camera's JSON, with extrinsic\.baseline and intrinsic\.fx"),
        ("camera", text("[" * 200_000), "cannot be read as a camera's JSON"),
        ("camera", text([1, 2]), "cannot be read as a camera's JSON"),
        ("camera", text({"extrinsic": {"baseline": 0.2}}), "cannot be read as a camera's JSON.*'intrinsic'"),
        ("camera", camera(None, 2262.5), "cannot be read as a camera's JSON"),
        ("camera", camera(0, 2262.5), r"holds extrinsic\.baseline = 0\.0; it must be above 0"),
        ("camera", camera(-0.2, -2262.5), r"holds extrinsic\.baseline = -0\.2"),
        ("camera", camera(0.2, float("nan")), r"holds intrinsic\.fx = nan"),
        ("camera", camera(0.2, float("inf")), r"holds intrinsic\.fx = inf"),
    ],
)
def test_bad_official_files_are_named(tmp_path, kind, spoil, message):
    written(tmp_path, "official")
    path = tmp_path / kind / "train" / (STEM + SUFFIXES[kind])
    spoil(path)
    train = opened(tmp_path, unit="m").train
    with pytest.raises(DataError, match=message) as caught:
        train[0]
    assert str(path) in str(caught.value)
    assert train[1].image.shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", ["gtFine", "disparity", "camera"])
def test_every_image_needs_its_labels(tmp_path, kind):
    written(tmp_path, "official")
    path = tmp_path / kind / "val" / (STEM + SUFFIXES[kind])
    path.unlink()
    with pytest.raises(DataError, match=r"1 of the files that .* are missing; the first is") as caught:
        opened(tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["label_7", "label_19", "depth"])
def test_every_array_needs_its_labels(tmp_path, kind):
    written(tmp_path, "mtan")
    (tmp_path / "val" / kind / "0.npy").unlink()
    with pytest.raises(DataError, match=rf"1 of the files that .* the first is .*val/{kind}/0\.npy"):
        opened(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_images_is_told(tmp_path, split):
    written(tmp_path, "official")
    shutil.rmtree(tmp_path / "leftImg8bit" / split / "generated")
    with pytest.raises(DataError, match=f"lists no '{'train' if split == 'train' else 'test'}' images"):
        opened(tmp_path)


@pytest.mark.parametrize("layout", ["adashare", "mtan"])
def test_only_the_official_files_have_metres(tmp_path, layout):
    written(tmp_path, layout)
    with pytest.raises(DataError, match=f"needs depth in m; layout '{layout}' has disparity/65535"):
        opened(tmp_path, unit="m")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["a.npy"], "entry 0 of 'train' has 1 paths; it must have 5: image, depth, .not used., segmentation"),
        (["../a.npy"] * 5, r"names \.\./a\.npy, which leads out of"),
    ],
)
def test_bad_indices_are_named(tmp_path, entry, message):
    written(tmp_path, "adashare")
    (tmp_path / "cityscape.json").write_text(json.dumps({"train": [entry], "test": []}))
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_a_part_of_a_layout_is_told_with_what_is_missing(tmp_path):
    (tmp_path / "leftImg8bit" / "val").mkdir(parents=True)
    with pytest.raises(DataError, match=r"nearest is 'official'.*but no leftImg8bit/train, gtFine, disparity"):
        opened(tmp_path)


@pytest.mark.parametrize("layout", ["adashare", "mtan"])
def test_other_forms_of_the_same_arrays_are_read(tmp_path, layout):
    splits = written(tmp_path, layout)
    folder = tmp_path / "train"
    expected = opened(tmp_path).train[0]
    np.save(folder / "image/0.npy", splits["train"][0].image.permute(1, 2, 0).numpy())
    np.save(folder / "depth/0.npy", np.load(folder / "depth/0.npy")[..., 0].astype(np.float64))
    np.save(folder / "label_19/0.npy", np.load(folder / "label_19/0.npy").astype(np.float64))
    read = opened(tmp_path).train[0]
    assert read.image.equal(expected.image)
    for task, target in expected.targets.items():
        assert read.targets[task].equal(target)
        assert read.targets[task].dtype == target.dtype
        assert read.masks[task].equal(expected.masks[task])
