"""NYU-v2 as its authors ship it: axes, numbers, classes, normals with and without files, and bad files."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import tracemalloc

import h5py
import numpy as np
import pytest
import torch
from nyuv2_trees import DEPTH, FILES, HEIGHT, NORMALS, SEGMENTATION, WIDTH, opened, photograph, write
from PIL import Image
from scipy.io import loadmat, savemat

from mtlprune_bench import DISPARSE, STANDARD, DataError
from mtlprune_bench.data.locate import locate
from mtlprune_bench.plugins.datasets.nyuv2 import official
from mtlprune_bench.plugins.datasets.nyuv2.geometry import normals_of

MAT, SPLITS, CLASSES = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"
COMPUTED = "normals computed from depth"


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "data", "official")


def change(root, key, values):
    """Put other values in place of an array of the large file; None takes it away."""
    with h5py.File(root / MAT, "a") as file:
        if key in file:
            del file[key]
        if values is not None:
            file[key] = values


def stored(root, key):
    with h5py.File(root / MAT) as file:
        return file[key][()]


def split(root, train, test):
    savemat(root / SPLITS, {"trainNdxs": np.array(train)[:, None], "testNdxs": np.array(test)[:, None]})


def test_the_files_are_those_of_the_release(root):
    numbered = [f"normals_gt/{kind}/000{number}.png" for kind in ("masks", "normals") for number in range(3)]
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*")) == sorted(
        [MAT, SPLITS, CLASSES, *numbered]
    )
    with h5py.File(root / MAT) as file:
        forms = {key: (array.dtype.name, array.shape) for key, array in file.items()}
    assert forms == {
        "images": ("uint8", (3, 3, WIDTH, HEIGHT)),
        "labels": ("uint16", (3, WIDTH, HEIGHT)),
        "depths": ("float32", (3, WIDTH, HEIGHT)),
        "rawDepths": ("float32", (3, WIDTH, HEIGHT)),
    }
    assert loadmat(root / SPLITS)["trainNdxs"].tolist() == [[1], [2]]
    assert loadmat(root / SPLITS)["testNdxs"].tolist() == [[3]]


def test_axes_are_transposed_and_never_reshaped(root):
    """A picture of one bright pixel, in row 1 and column 6 of 6 x 8, of which every axis has another length."""
    pixels = np.zeros((3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels, depth = np.zeros((3, HEIGHT, WIDTH), dtype=np.uint16), np.ones((3, HEIGHT, WIDTH), dtype=np.float32)
    pixels[0, 1, 6], labels[0, 1, 6], depth[0, 1, 6] = (10, 20, 30), 4, 5
    # MATLAB's [H, W, 3, N], written column by column, is HDF5's [N, 3, W, H].
    change(root, "images", np.moveaxis(pixels, (0, 3, 2, 1), (0, 1, 2, 3)))
    for key, values in (("labels", labels), ("depths", depth), ("rawDepths", depth)):
        change(root, key, values.transpose(0, 2, 1))
    sample = opened(root).train[0]
    assert sample.image[:, 1, 6].tolist() == [10, 20, 30]
    assert int(sample.image.sum()) == 60
    assert sample.masks["segmentation"].nonzero().tolist() == [[1, 6]]
    assert sample.targets["segmentation"][1, 6] == 3
    assert sample.targets["depth"][0, 1, 6] == 5
    assert sample.targets["depth"].sum() == HEIGHT * WIDTH + 4


def test_splits_count_from_one_and_normals_from_zero(root):
    """All that belongs to one image comes together, though it is numbered in two ways."""
    split(root, train=[3], test=[1, 2])
    splits = opened(root)
    expected = [photograph(2), photograph(0), photograph(1)]
    read = [splits.train[0], splits.test[0], splits.test[1]]
    for sample, other in zip(read, expected, strict=True):
        assert torch.equal(sample.image, other.image)
        for task in ("segmentation", "normals", "depth"):
            assert torch.equal(sample.masks[task], other.masks[task])
            assert torch.allclose(sample.targets[task], other.targets[task], atol=0.01)
    assert [place.path.name for place in splits.train.entries[0]["normals"]] == ["0002.png", "0002.png"]


def test_the_published_split(samples_folder, root):
    """795 and 654 images; 0061 and 0774, counted from 0, are of the test set."""
    published = samples_folder / "nyuv2_meta" / SPLITS
    train, test = (official.whole_numbers(published, key, 1449) - 1 for key in ("trainNdxs", "testNdxs"))
    assert (len(train), len(test)) == (FILES.sizes["train"], FILES.sizes["test"]) == (795, 654)
    assert sorted([*train, *test]) == list(range(1449))
    assert {61, 774} <= set(test.tolist())
    shutil.copy(published, root / SPLITS)
    with pytest.raises(DataError, match="'trainNdxs' holds 4; it must hold whole numbers from 1 to 3"):
        opened(root)


def test_the_published_classes(samples_folder, root):
    """Label 1 is a book, of class 40; 4 the ceiling, of 22; 5 a chair, of 5; 894 is the last."""
    shutil.copy(samples_folder / "nyuv2_meta" / CLASSES, root / CLASSES)
    labels = np.zeros((3, WIDTH, HEIGHT), dtype=np.uint16)
    labels[0, :5, 0] = 1, 4, 5, 21, 894
    change(root, "labels", labels)
    sample = opened(root, (SEGMENTATION,)).train[0]
    last = loadmat(root / CLASSES)["mapClass"][0, 893] - 1
    assert sample.targets["segmentation"][0, :5].tolist() == [39, 21, 4, 0, last]
    assert int(sample.masks["segmentation"].sum()) == 5


def test_labels_go_through_the_table_of_classes(root):
    savemat(root / CLASSES, {"mapClass": np.array([[40.0, 1.0, 40.0, 7.0]])})
    labels = np.arange(WIDTH * HEIGHT).reshape(WIDTH, HEIGHT) % 5
    change(root, "labels", np.stack([labels] * 3).astype(np.uint16))
    sample = opened(root, (SEGMENTATION,)).train[0]
    assert torch.equal(sample.targets["segmentation"], torch.tensor([255, 39, 0, 39, 6])[labels.T])
    assert np.array_equal(sample.masks["segmentation"], labels.T > 0)


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
def test_depth_that_was_painted_in_counts_under_disparse_alone(root, protocol):
    depths, raw = np.full((2, 3, WIDTH, HEIGHT), 3, dtype=np.float32)
    raw[0] = 2
    raw[0, 2, 1], raw[0, 3, 1] = 0, np.nan
    depths[0, 4, 1], depths[0, 5, 1] = 0, np.inf
    change(root, "depths", depths)
    change(root, "rawDepths", raw)
    sample = opened(root, (DEPTH,), protocol).train[0]
    mask = sample.masks["depth"]
    unmeasured = [] if protocol.inpainted_depth else [[1, 2], [1, 3]]
    assert (~mask).nonzero().tolist() == [*unmeasured, [1, 4], [1, 5]]
    assert torch.equal(sample.targets["depth"][0], mask * 3.0)
    assert [array.dtype.name for array in sample.labels["depth"].stored] == ["float32", "uint8"]


@pytest.mark.parametrize("bilevel", [False, True])
def test_masks_of_eight_bits_or_one(root, bilevel):
    path = root / "normals_gt" / "masks" / "0000.png"
    Image.open(path).convert("1" if bilevel else "L").save(path)
    assert torch.equal(opened(root).train[0].masks["normals"], photograph(0).masks["normals"])


def test_the_brightest_code_is_a_normal_where_the_mask_says_so(root):
    """In AdaShare's files white would mean none."""
    codes = np.full((HEIGHT, WIDTH, 3), 127, dtype=np.uint8)
    codes[0, 0] = codes[0, 1] = 128, 255, 127  # forward
    Image.fromarray(codes).save(root / "normals_gt" / "normals" / "0000.png")
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[0, 0] = mask[5] = 1
    Image.fromarray(mask).save(root / "normals_gt" / "masks" / "0000.png")
    sample, raw = (opened(root, (NORMALS,), protocol).train[0] for protocol in (STANDARD, DISPARSE))
    assert sample.masks["normals"].nonzero().tolist() == [[0, 0]]
    assert torch.allclose(sample.targets["normals"][:, 0, 0], torch.tensor([0.0, 0.0, 1.0]), atol=0.01)
    assert int(raw.masks["normals"].sum()) == 1 + WIDTH


def test_normals_may_lie_in_the_root(root):
    expected = opened(root).train[0].targets["normals"]
    for kind in ("normals", "masks"):
        (root / "normals_gt" / kind).rename(root / kind)
    splits = opened(root)
    assert torch.equal(splits.train[0].targets["normals"], expected)
    assert COMPUTED not in splits.origin


@pytest.fixture(scope="module")
def tilted(tmp_path_factory):
    """Return a folder without normals, in which every photograph is of one tilted plane, and its normal."""
    root = tmp_path_factory.mktemp("tilted") / "data"
    rows, columns = np.mgrid[:60, :80]
    depth = (2 + 0.001 * columns + 0.002 * rows).astype(np.float32)
    samples = [photograph(seed, height=60, width=80) for seed in range(2)]
    write(root, "official", {"train": samples[:1], "test": samples[1:]})
    raw = depth.copy()
    raw[30, 40] = 0
    change(root, "depths", np.stack([depth.T] * 2))
    change(root, "rawDepths", np.stack([raw.T] * 2))
    shutil.rmtree(root / "normals_gt")
    return root, normals_of(depth.astype(np.float64), raw > 0)


def test_without_files_normals_are_computed_and_this_is_said(tilted):
    root, (normals, mask) = tilted
    splits = opened(root)
    assert splits.origin == f"NYU-v2, layout official, 1 training and 1 test images; {COMPUTED}"
    sample = splits.train[0]
    assert np.array_equal(sample.masks["normals"], mask)
    assert not mask[30, 40]
    assert not mask[30, 47]
    assert abs(sample.targets["normals"].numpy() - normals)[:, mask].max() < 1 / 127.5
    assert sample.targets["normals"][2][torch.from_numpy(mask)].max() < 0
    assert COMPUTED not in opened(root, (SEGMENTATION, DEPTH)).origin


def test_computed_normals_are_codes_to_a_protocol_that_does_not_decode(tilted):
    root, (normals, mask) = tilted
    sample = opened(root, (NORMALS,), DISPARSE).train[0]
    right, down, forward = normals
    raw = np.floor((np.stack([-down, forward, right]) + 1) * 127.5)
    expected = raw / np.linalg.norm(raw, axis=0)
    assert np.allclose(sample.targets["normals"][:, torch.from_numpy(mask)], expected[:, mask], atol=1e-5)


def test_computed_and_other_normals_never_share_a_result(root):
    before = opened(root).fingerprint
    others = opened(root, (SEGMENTATION, DEPTH)).fingerprint
    shutil.rmtree(root / "normals_gt")
    assert before == others == opened(root, (SEGMENTATION, DEPTH)).fingerprint
    assert opened(root).fingerprint == f"{before}-computed-normals"
    split(root, train=[2, 1], test=[3])
    assert opened(root, (DEPTH,)).fingerprint != before


def test_a_row_is_read_without_the_others(tmp_path):
    """Of a file as large as the real one, in which two images are written."""
    root = write(tmp_path, "official", {"train": [photograph(0)], "test": [photograph(1)]})
    (root / MAT).unlink()
    with h5py.File(root / MAT, "w") as file:
        for key, dtype in official.TYPES.items():
            shape = (1449, *((3,) if key == "images" else ()), 640, 480)
            array = file.create_dataset(key, shape, dtype, chunks=(1, *shape[1:]))
            array[700] = 9
    split(root, train=[701], test=[1449])
    tracemalloc.start()
    splits = opened(root, (SEGMENTATION, DEPTH))
    sample, empty = splits.train[0], splits.test[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (sample.image == 9).all()
    assert (sample.targets["depth"] == 9).all()
    assert not empty.image.any()
    assert sample.image.shape == (3, *FILES.layouts[2].size)
    assert peak < 50 * 640 * 480  # bytes; the file's images alone are 1449 * 3 * 640 * 480


def test_forked_readers_open_the_file_for_themselves(root):
    splits = opened(root, (SEGMENTATION, DEPTH))
    before = splits.train[0].image
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    readers = [context.Process(target=read_often, args=(splits.train, queue)) for _ in range(2)]
    for reader in readers:
        reader.start()
    assert all(torch.equal(splits.train[0].image, before) for _ in range(50))
    assert [queue.get(), queue.get()] == [True, True]
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0


def read_often(samples, queue):
    expected = [photograph(seed).image for seed in range(2)]
    queue.put(all(torch.equal(samples[number % 2].image, expected[number % 2]) for number in range(50)))


def test_the_file_is_opened_once_by_a_process(root, monkeypatch):
    splits = opened(root)
    calls, plain = [], official.open_hdf5
    monkeypatch.setattr(official, "open_hdf5", lambda path: calls.append(path) or plain(path))
    assert splits.train[0].image.shape == splits.train[1].image.shape
    assert calls == [(root / MAT).resolve()]
    monkeypatch.setattr(official.os, "getpid", lambda: -1)
    assert splits.train[0].image.shape == splits.test[0].image.shape
    assert len(calls) == 2


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def text(path):
    path.write_text("<html>Not found</html>")


@pytest.mark.parametrize("spoil", [halve, text, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize(
    ("name", "what"), [(MAT, "an HDF5 file"), (SPLITS, "a MATLAB file"), (CLASSES, "a MATLAB file")]
)
def test_damaged_files_are_named(root, name, what, spoil):
    spoil(root / name)
    with pytest.raises(DataError, match=f"{re.escape(str(root / name))} cannot be read as {what}: .*Replace the"):
        opened(root).train[0]


def test_a_matlab_file_of_the_other_kind_is_named(root):
    shutil.copy(root / SPLITS, root / MAT)
    with pytest.raises(DataError, match=f"{MAT} cannot be read as an HDF5 file"):
        opened(root)


@pytest.mark.parametrize("name", [MAT, SPLITS, CLASSES])
def test_a_missing_file_is_named(root, name):
    (root / name).unlink()
    with pytest.raises(DataError, match=f"nearest is 'official'.* no {name}"):
        opened(root)


@pytest.mark.parametrize("key", ["images", "labels", "depths", "rawDepths"])
def test_a_missing_array_is_named(root, key):
    change(root, key, None)
    with pytest.raises(DataError, match=f"{MAT} has no '{key}'"):
        opened(root)


def test_a_group_in_place_of_an_array_is_named(root):
    change(root, "depths", None)
    with h5py.File(root / MAT, "a") as file:
        file.create_group("depths")
    with pytest.raises(DataError, match=f"{MAT} has no 'depths'"):
        opened(root)


def test_arrays_of_other_tasks_are_not_needed(root):
    for key in ("depths", "rawDepths"):
        change(root, key, None)
    assert set(opened(root, (SEGMENTATION,)).train[0].labels) == {"segmentation"}


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        (
            "images",
            np.zeros((3, HEIGHT, WIDTH, 3), np.uint8),
            r"'images' is uint8 \[3, 6, 8, 3\]; it must be uint8 \[images, 3, width, height\]",
        ),
        ("images", np.zeros((3, 3, WIDTH, HEIGHT)), r"'images' is float64 \[3, 3, 8, 6\]"),
        ("images", np.zeros((3, WIDTH, HEIGHT), np.uint8), r"'images' is uint8 \[3, 8, 6\]"),
        (
            "labels",
            np.zeros((3, WIDTH, HEIGHT), np.int16),
            r"'labels' is int16 .*; it must be uint16 \[images",
        ),
        ("labels", np.uint16(3), r"'labels' is uint16 \[\]"),
        ("depths", np.zeros((3, 1, WIDTH, HEIGHT), np.float32), r"'depths' is float32 \[3, 1, 8, 6\]"),
        ("rawDepths", np.zeros((3, WIDTH, HEIGHT), np.uint16), "'rawDepths' is uint16"),
        (
            "depths",
            np.zeros((3, HEIGHT, WIDTH), np.float32),
            r"'depths' is \[3, 6, 8\], .*; numbers and sizes of images differ",
        ),
        ("labels", np.zeros((2, WIDTH, HEIGHT), np.uint16), r"'labels' is \[2, 8, 6\], .* differ"),
    ],
)
def test_arrays_of_another_form_are_named(root, key, values, message):
    change(root, key, values)
    with pytest.raises(DataError, match=message) as caught:
        opened(root)
    assert str(root / MAT) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trainNdxs": [[1]]}, "has no numbers called 'testNdxs'"),
        ({"testNdxs": [[1]]}, "has no numbers called 'trainNdxs'"),
        (
            {"trainNdxs": [[0], [1]], "testNdxs": [[2]]},
            "'trainNdxs' holds 0; it must hold whole",
        ),
        ({"trainNdxs": [[1]], "testNdxs": [[4]]}, "'testNdxs' holds 4; it must hold whole numbers from 1 to 3"),
        ({"trainNdxs": [[1.5]], "testNdxs": [[2]]}, "'trainNdxs' holds 1.5"),
        ({"trainNdxs": [[np.nan]], "testNdxs": [[2]]}, "'trainNdxs' holds nan"),
        ({"trainNdxs": [["a"]], "testNdxs": [[2]]}, "has no numbers called 'trainNdxs'"),
        (
            {"trainNdxs": np.array([{"a": 1}], dtype=object), "testNdxs": [[2]]},
            "has no numbers called 'trainNdxs'",
        ),
        ({"trainNdxs": np.zeros((0, 1)), "testNdxs": [[2]]}, "lists no 'train' images"),
        ({"trainNdxs": [[1], [2], [1]], "testNdxs": [[3]]}, f"{MAT}, image 0 is listed twice in 'train'"),
    ],
)
def test_bad_splits_are_named(root, content, message):
    savemat(root / SPLITS, content)
    with pytest.raises(DataError, match=message) as caught:
        opened(root)
    assert str(root) in str(caught.value)


def test_an_image_of_both_splits_is_warned_of(root):
    split(root, train=[1, 2], test=[2, 3])
    with pytest.warns(UserWarning, match=f"for training and for test, 1 in all; the first is .*{MAT}, image 1"):
        assert "1 OF THEM ALSO TRAINED ON" in opened(root).origin


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": [[1]]}, "has no numbers called 'mapClass'"),
        ({"mapClass": [[1, 0]]}, "'mapClass' holds 0; it must hold whole numbers from 1 to 40"),
        ({"mapClass": [[1, 41]]}, "'mapClass' holds 41"),
        ({"mapClass": [[1, 2, 3]]}, rf"{MAT}, image 0 holds label 40; .*{CLASSES} has the classes of 1 to 3"),
    ],
)
def test_bad_tables_of_classes_are_named(root, content, message):
    savemat(root / CLASSES, content)
    labels = stored(root, "labels")
    labels[0, 0, 0] = 40
    change(root, "labels", labels)
    with pytest.raises(DataError, match=message) as caught:
        opened(root, (SEGMENTATION,)).train[0]
    assert str(root / CLASSES) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("normals", (HEIGHT, WIDTH), "holds 8-bit grey pixels; this layout has 8-bit RGB"),
        ("normals", (WIDTH, HEIGHT, 3), "has 8 x 6 pixels, but its image .*image 0 has 6 x 8"),
        ("masks", (HEIGHT, WIDTH, 3), "holds 'RGB' pixels; a mask has one channel"),
        ("masks", (HEIGHT + 1, WIDTH), "has 7 x 8 pixels, but its image"),
    ],
)
def test_bad_normals_are_named(root, kind, shape, message):
    path = root / "normals_gt" / kind / "0000.png"
    Image.fromarray(np.ones(shape, dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=message) as caught:
        opened(root).train[0]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["normals", "masks"])
def test_damaged_and_missing_normals_are_named(root, kind):
    path = root / "normals_gt" / kind / "0000.png"
    halve(path)
    with pytest.raises(DataError, match=f"{kind}/0000.png cannot be read as a PNG image"):
        opened(root).train[0]
    path.unlink()
    with pytest.raises(DataError, match=f"1 of the files .* the first is .*{kind}/0000.png"):
        opened(root)


def test_a_row_that_is_damaged_is_named(tmp_path):
    """The index is whole, but what it points to is not."""
    root = write(tmp_path, "official")
    pixels = stored(root, "images")
    change(root, "images", None)
    with h5py.File(root / MAT, "a") as file:
        file.create_dataset("images", data=pixels, chunks=(1, *pixels.shape[1:]), compression="gzip")
        chunk = file["images"].id.get_chunk_info(1)
    content = bytearray((root / MAT).read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    (root / MAT).write_bytes(content)
    splits = opened(root, (DEPTH,))
    assert torch.equal(splits.train[0].image, photograph(0).image)
    with pytest.raises(DataError, match=f"{MAT} cannot be read as an HDF5 file"):
        splits.train[1]


def test_files_outside_the_folder_are_refused(root, tmp_path):
    (root / MAT).rename(tmp_path / MAT)
    (root / MAT).symlink_to(tmp_path / MAT)
    with pytest.raises(DataError, match=f"names {MAT}, which leads out of"):
        opened(root)


def test_the_layout_is_found_by_its_three_files(root):
    assert locate(FILES, root.parent, "official") is None
    root.rename(root.with_name("NYU_v2"))
    assert locate(FILES, root.parent).layout.name == "official"
