"""NYU-v2 in MTAN's layout: what its arrays may hold, how they are read, and everything that can be wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from nyuv2_trees import ALL_THIRTEEN, HEIGHT, THIRTEEN, WIDTH, opened, photograph, photographs, write

from mtlprune_bench import DISPARSE, STANDARD, DataError


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "data", "mtan")


def store(root, name, array, folder="train"):
    np.save(root / folder / f"{name}.npy", array)


def first(root, protocol=STANDARD):
    return opened(root, ALL_THIRTEEN, protocol).train[0]


def test_the_files_are_those_of_the_release(root):
    folders = [f"{split}/{kind}" for split in ("train", "val") for kind in ("image", "label", "depth", "normal")]
    numbers = {"train": ["0", "1"], "val": ["0"]}
    expected = [f"{folder}/{number}.npy" for folder in folders for number in numbers[folder.split("/")[0]]]
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*")) == sorted(expected)
    shapes = {"image": (HEIGHT, WIDTH, 3), "label": (HEIGHT, WIDTH), "depth": (HEIGHT, WIDTH, 1)}
    for kind, shape in (shapes | {"normal": (HEIGHT, WIDTH, 3)}).items():
        assert np.load(root / "val" / kind / "0.npy").shape == shape


def test_images_come_by_number_and_val_is_for_test(tmp_path):
    root = write(tmp_path, "mtan", photographs(13, train=12, test=11))
    splits = opened(root, (THIRTEEN,), DISPARSE)
    for samples, seeds in ((splits.train, range(12)), (splits.test, range(12, 23))):
        assert [entry["image"][0].path.stem for entry in samples.entries] == [str(n) for n in range(len(seeds))]
        for number, seed in enumerate(seeds):
            assert torch.equal(samples[number].image, photograph(seed, 13).image)
    assert len(opened(root, (THIRTEEN,)).validation) == 1


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_image_numbers_are_rounded_to_levels(root, dtype):
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=dtype)
    pixels[2, 5] = [0.25, 0.5001, 1]  # 63.75, 127.5255, 255
    store(root, "image/0", pixels)
    image = first(root).image
    assert image.dtype == torch.uint8
    assert image[:, 2, 5].tolist() == [64, 128, 255]
    assert int(image.sum()) == 64 + 128 + 255


def test_images_of_eight_bits_are_taken_as_they_are(root):
    pixels = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
    store(root, "image/0", pixels)
    assert np.array_equal(first(root).image.permute(1, 2, 0), pixels)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "int64"])
def test_classes_of_any_type_of_number(root, dtype):
    classes = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 14 - 1
    store(root, "label/0", classes.astype(dtype))
    sample = first(root)
    assert sample.labels["segmentation"].stored[0].dtype == np.int8
    mask = sample.masks["segmentation"].numpy()
    assert np.array_equal(mask, classes >= 0)
    assert np.array_equal(sample.targets["segmentation"][mask], classes[mask])
    assert sample.targets["segmentation"].dtype == torch.int64


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
def test_normals_are_unit_vectors_wherever_any_component_is_not_zero(root, protocol):
    normals = np.zeros((HEIGHT, WIDTH, 3))
    normals[0, 0] = [0.6, 0, -0.8]
    normals[0, 1] = [0, 0.1, 0]  # shortened by interpolation
    normals[0, 2] = np.array([1, -1, 0]) / 2**0.5  # its components add up to 0
    normals[0, 3] = [1e-30, 0, 0]
    normals[0, 4] = [np.nan, 1, 0]
    store(root, "normal/0", normals)
    sample = first(root, protocol)
    mask = sample.masks["normals"]
    assert mask.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    vectors = sample.targets["normals"]
    expected = torch.tensor([[0.6, 0, -0.8], [0, 1, 0], [0.5**0.5, -(0.5**0.5), 0], [1, 0, 0]])
    assert torch.allclose(vectors[:, mask].T, expected, atol=1e-6)
    assert not vectors[:, ~mask].any()
    assert vectors.dtype == torch.float32


def test_depth_of_zero_is_no_depth(root):
    depth = np.full((HEIGHT, WIDTH, 1), 2.5)
    depth[3, 1], depth[3, 2] = 0, np.inf
    store(root, "depth/0", depth)
    sample = first(root)
    assert (~sample.masks["depth"]).nonzero().tolist() == [[3, 1], [3, 2]]
    assert torch.equal(sample.targets["depth"][0], sample.masks["depth"] * 2.5)


def test_the_first_channel_of_normals_grows_to_the_right(tmp_path):
    """As it is x which changes sign where an image is mirrored."""
    from mtlprune_bench.host.registry import load_registry

    mirror = load_registry().get("tasks", "normals").mirror
    sample = photograph(3, 13)
    root = write(tmp_path, "mtan", {"train": [sample], "test": [photograph(4, 13)]})
    stored = np.load(root / "train" / "normal" / "0.npy")
    mirrored = mirror(first(root).targets["normals"])
    assert np.allclose(mirrored.permute(1, 2, 0), stored * [-1, 1, 1], atol=1e-6)


def full(shape, value, dtype="float32"):
    return np.full(shape, value, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("image/0", full((HEIGHT, WIDTH, 3), 255), "holds 255 to 255; images are 0 to 1"),
        ("image/0", full((HEIGHT, WIDTH, 3), -0.1), "holds -0.1 to -0.1; images are 0 to 1"),
        ("image/0", full((HEIGHT, WIDTH, 3), np.nan), "holds nan to nan; images are 0 to 1"),
        ("image/0", full((3, HEIGHT, WIDTH), 0), r"holds float32 \[3, 6, 8\]; this layout has 3 channels, last"),
        ("image/0", full((HEIGHT, WIDTH), 0), "holds float32 in 2 dimensions; this layout has 3"),
        ("image/0", full((HEIGHT, WIDTH, 3), 0, "uint16"), "holds uint16 .* numbers or 8 bits"),
        ("image/0", full((HEIGHT, WIDTH, 3), 0, "int64"), "holds int64 in 3 dimensions"),
        ("label/0", full((HEIGHT, WIDTH), 13), "holds class 13; classes are 0 to 12, and -1 for none"),
        ("label/0", full((HEIGHT, WIDTH), -2, "int8"), "holds class -2"),
        ("label/0", full((HEIGHT, WIDTH), 255, "uint8"), "holds class 255"),
        ("label/0", full((HEIGHT, WIDTH), 2.5), "holds class 2.5"),
        ("label/0", full((HEIGHT, WIDTH), np.nan), "holds class nan"),
        ("label/0", full((HEIGHT, WIDTH), True, "bool"), "holds bool in 2 dimensions"),
        ("label/0", full((HEIGHT, WIDTH, 1), 0), "holds float32 in 3 dimensions"),
        ("label/0", full((WIDTH, HEIGHT), 0), "has 8 x 6 pixels, but its image .* has 6 x 8"),
        ("normal/0", full((HEIGHT, WIDTH, 3), 127, "uint8"), "holds uint8 in 3 dimensions"),
        ("normal/0", full((HEIGHT, WIDTH, 4), 0), r"holds float32 \[6, 8, 4\]; this layout has 3 channels, last"),
        ("normal/0", full((WIDTH, HEIGHT, 3), 0), "has 8 x 6 pixels, but its image"),
        ("depth/0", full((HEIGHT, WIDTH), 1), "holds float32 in 2 dimensions"),
        ("depth/0", full((HEIGHT, WIDTH, 2), 1), r"holds float32 \[6, 8, 2\]; this layout has 1 channels"),
        ("depth/0", full((HEIGHT, WIDTH, 1), 1, "uint16"), "holds uint16 in 3 dimensions"),
        ("depth/0", full((HEIGHT - 1, WIDTH, 1), 1), "has 5 x 8 pixels, but its image"),
    ],
)
def test_bad_arrays_are_named(root, name, array, message):
    splits = opened(root, ALL_THIRTEEN)
    store(root, name, array)
    with pytest.raises(DataError, match=message) as caught:
        splits.train[0]
    assert str(root / "train" / f"{name}.npy") in str(caught.value)
    splits.train[1]


@pytest.mark.parametrize("kind", ["label", "normal", "depth"])
def test_missing_files_are_named(root, kind):
    (root / "val" / kind / "0.npy").unlink()
    with pytest.raises(DataError, match=rf"1 of the files .* are missing; the first is .*val/{kind}/0\.npy"):
        opened(root, ALL_THIRTEEN)


def test_a_split_without_images_is_named(root):
    (root / "val" / "image" / "0.npy").unlink()
    with pytest.raises(DataError, match=f"{re.escape(str(root))} lists no 'test' images"):
        opened(root, ALL_THIRTEEN)


def test_files_outside_the_folder_are_refused(root, tmp_path):
    (root / "train" / "label" / "1.npy").rename(tmp_path / "outside.npy")
    (root / "train" / "label" / "1.npy").symlink_to(tmp_path / "outside.npy")
    with pytest.raises(DataError, match=r"names train/label/1\.npy, which leads out of"):
        opened(root, ALL_THIRTEEN)
