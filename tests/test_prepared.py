"""Prepared images: equal to the bit to the files', whatever stops the work, and never read where damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlprune_bench import (
    STANDARD,
    Column,
    DataError,
    Dataset,
    Files,
    Index,
    Labels,
    Layout,
    Place,
    Recipe,
    Task,
    UsageError,
    checksum,
    read_npy,
)
from mtlprune_bench.data import shards
from mtlprune_bench.data.layouts import fingerprint
from mtlprune_bench.data.locate import Found
from mtlprune_bench.data.photos import open_photos
from mtlprune_bench.data.prepared import (
    needed_bytes,
    open_prepared,
    prepare,
    prepared_at,
    prepared_folder,
    verify_prepared,
)
from mtlprune_bench.errors import StoreError
from mtlprune_bench.tasks import Objective
from mtlprune_bench.training.batches import Stream

HEIGHT, WIDTH = 6, 8
PIXELS = HEIGHT * WIDTH
BYTES = {"image": 3 * PIXELS, "colour": 2 * PIXELS, "pair": (3 + 1) * PIXELS, "far": 2 * PIXELS}
"""What one image takes in each column."""
SUFFIXES = {"image": ("image",), "colour": ("colour",), "pair": ("codes", "shown"), "far": ("far",)}


def index(root, tasks):
    """List the numbered images of list.json, with the files of their columns."""
    listed = json.loads((root / "list.json").read_text())
    return Index(
        **{
            split: tuple(
                {
                    column: tuple(Place(root / split / f"{number}-{name}.npy") for name in SUFFIXES[column])
                    for column in ("image", *tasks)
                }
                for number in numbers
            )
            for split, numbers in listed.items()
        },
        note="pairs made up" if "pair" in tasks else "",
    )


def whole(stored, labels, protocol):
    return stored[0].astype(np.int64), np.ones(stored[0].shape, dtype=bool)


def paired(stored, labels, protocol):
    codes, shown = stored
    return codes.astype(np.float32) / np.float32(127.5) - np.float32(1), shown


def far(stored, labels, protocol):
    assert stored[0].dtype == np.float32
    mask = np.isfinite(stored[0])
    return np.where(mask, stored[0], np.float32(0)), mask[0]


def read_pair(codes, shown):
    return read_npy(codes.path, 3, "u"), np.load(shown.path)


LAYOUT = Layout(
    name="toy",
    source="",
    description="NumPy files",
    signs=("list.json",),
    index=index,
    image=lambda place: read_npy(place.path, 3, "u"),
    columns={
        "colour": Column(read=lambda place: (read_npy(place.path, 2, "u"),), decode=whole, classes=(300,)),
        "pair": Column(read=read_pair, decode=paired),
        "far": Column(read=lambda place: (read_npy(place.path, 3),), decode=far, units=("m",)),
    },
    size=(HEIGHT, WIDTH),
    write=lambda root, splits: None,
    writes=(),
)
FILES = Files(
    title="Toys",
    folders=("toys",),
    layouts=(LAYOUT,),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.125),
    sizes={},
    licence="none",
)
LABELS = {"colour": Labels("colour", classes=300), "pair": Labels("pair"), "far": Labels("far", unit="m")}
INTEGERS = ("colour", "pair")
EVERYTHING = (*INTEGERS, "far")
RECIPE = Recipe(steps=10, batch=3, crop=5)


def dataset(tasks=INTEGERS, files=FILES):
    return Dataset(
        name="toys",
        description="",
        labels=tuple(LABELS[task] for task in tasks),
        loss_weights=dict.fromkeys(tasks, 1.0),
        model="",
        train=RECIPE,
        finetune=RECIPE,
        files=files,
    )


def write_image(root, split, number, size=(HEIGHT, WIDTH)):
    rng = np.random.default_rng([number, len(split)])
    arrays = {
        "image": rng.integers(0, 256, (3, *size), dtype=np.uint8),
        "colour": rng.integers(0, 300, size, dtype=np.uint16),
        "codes": rng.integers(0, 256, (3, *size), dtype=np.uint8),
        "shown": rng.random(size) < 0.7,
        "far": rng.uniform(0.5, 10, (1, *size)).astype(np.float32),
    }
    arrays["far"][0, 0, :3] = np.nan, np.inf, 0
    for name, array in arrays.items():
        np.save(root / split / f"{number}-{name}.npy", array)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "toys"
    splits = {"train": [4, 2, 7, 1, 9], "test": [3, 8]}
    for split, numbers in splits.items():
        (root / split).mkdir(parents=True)
        for number in numbers:
            write_image(root, split, number)
    (root / "list.json").write_text(json.dumps(splits))
    return root


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Let a shard hold two images, three of their colours, or one pair."""
    monkeypatch.setattr("mtlprune_bench.data.shards.SHARD_BYTES", 2 * BYTES["image"])


def ready(root, cache, tasks=INTEGERS, workers=2, advance=lambda count: None):
    found = Found(LAYOUT, root)
    folder = prepare(dataset(tasks), found, prepared_folder(FILES, found, cache), workers, advance)
    assert folder.parent == cache / "prepared"
    return folder


def opened(root, layout=LAYOUT, tasks=INTEGERS):
    return open_photos(dataset(tasks), layout, root, STANDARD)


def reopened(folder, tasks=INTEGERS):
    layout = open_prepared(LAYOUT, folder, tasks)
    assert layout is not None
    return opened(folder, layout, tasks)


def stream(splits, tasks=INTEGERS):
    objective = Objective(
        tasks={task: Task(name=task, description="", loss=None) for task in tasks},
        labels={task: LABELS[task] for task in tasks},
        weights=dict.fromkeys(tasks, 1.0),
        protocol=STANDARD,
    )
    return Stream(splits, objective, RECIPE, seed=3)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_samples_of_integers_are_those_of_the_files_to_the_bit(root, tmp_path):
    files, prepared = opened(root), reopened(ready(root, tmp_path))
    assert prepared.fingerprint == files.fingerprint
    assert prepared.origin == files.origin
    assert "pairs made up" in prepared.origin
    for split, count in (("train", 5), ("validation", 0), ("test", 2)):
        ours, theirs = getattr(prepared, split), getattr(files, split)
        assert len(ours) == len(theirs) == count
        for number in range(count):
            one, other = ours[number], theirs[number]
            assert torch.equal(one.image, other.image)
            for task in INTEGERS:
                assert torch.equal(one.targets[task], other.targets[task])
                assert one.targets[task].dtype == other.targets[task].dtype
                assert torch.equal(one.masks[task], other.masks[task])


def test_batches_of_integers_are_those_of_the_files_to_the_bit(root, tmp_path):
    files, prepared = stream(opened(root)), stream(reopened(ready(root, tmp_path)))
    for step in range(8):
        one, other = prepared[step], files[step]
        assert torch.equal(one.images, other.images)
        for task in INTEGERS:
            assert torch.equal(one.targets[task], other.targets[task])
            assert torch.equal(one.masks[task], other.masks[task])


def test_floating_point_numbers_are_kept_as_float16_and_named(root, tmp_path):
    folder = ready(root, tmp_path, EVERYTHING)
    files, prepared = opened(root, tasks=EVERYTHING), reopened(folder, EVERYTHING)
    for number in range(5):
        ours, theirs = (splits.train[number].targets["far"] for splits in (prepared, files))
        assert ours.dtype == theirs.dtype == torch.float32
        # Half a unit in the last of eleven binary places.
        assert ((ours - theirs).abs() <= theirs * 2**-11).all()
        assert torch.equal(ours, theirs.half().float())
        masks = [splits.train[number].masks["far"] for splits in (prepared, files)]
        assert torch.equal(*masks)
        assert not masks[0][0, :2].any()
    assert prepared.fingerprint == f"{files.fingerprint}-float16"
    assert prepared.origin == f"{files.origin}; far as float16"
    assert reopened(folder).fingerprint == files.fingerprint
    assert "float16" not in reopened(folder).origin
    batch = stream(prepared, EVERYTHING)[0]
    exact = stream(files, EVERYTHING)[0]
    assert torch.allclose(batch.targets["far"], exact.targets["far"], rtol=2**-11)


def test_images_are_not_copied_and_writing_to_them_leaves_the_file_alone(root, tmp_path):
    folder = ready(root, tmp_path)
    before = contents(folder)
    samples = reopened(folder).train
    one, again = samples[0].image, samples[0].image
    assert one.data_ptr() == again.data_ptr()
    one.zero_()
    assert contents(folder) == before


def test_the_bytes_that_are_announced_are_those_that_become_ready(root, tmp_path):
    total = needed_bytes(LAYOUT, index(root, EVERYTHING))
    assert total == 7 * sum(BYTES.values())
    counted = []
    folder = ready(root, tmp_path, EVERYTHING, advance=counted.append)
    assert sum(counted) == total
    headers = sum(np.load(path, mmap_mode="r").offset for path in folder.glob("*.npy"))
    assert sum(path.stat().st_size for path in folder.glob("*.npy")) == total + headers
    again = []
    ready(root, tmp_path, EVERYTHING, advance=again.append)
    assert sum(again) == total


def test_the_manifest_says_what_the_folder_holds(root, tmp_path):
    folder = ready(root, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    identity = fingerprint(root, index(root, ()))
    assert folder.name == f"toys-toy-{identity}"
    assert [manifest[key] for key in ("dataset", "layout", "fingerprint")] == ["toys", "toy", identity]
    assert manifest["images"]["test"] == ["test/3-image.npy", "test/8-image.npy"]
    assert manifest["columns"]["pair"]["forms"] == [
        {"shape": [3, HEIGHT, WIDTH], "source": "uint8"},
        {"shape": [HEIGHT, WIDTH], "source": "bool"},
    ]
    for column in manifest["columns"].values():
        assert column["checksums"] == {name: checksum(folder / name) for name in column["checksums"]}
    listed = {name for column in manifest["columns"].values() for name in column["checksums"]}
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *listed}
    assert verify_prepared(folder) == []


class Stop(Exception):
    pass


def stopping_after(count):
    """Return an `advance` that stops the work when `count` images of some column were read."""
    calls = iter(range(count))

    def advance(ready):
        if next(calls, None) is None:
            raise Stop

    return advance


def test_work_that_is_stopped_anywhere_goes_on_to_the_same_bytes(root, tmp_path):
    expected = contents(ready(root, tmp_path / "whole"))
    for count in range(21):
        cache = tmp_path / str(count)
        with pytest.raises(Stop):
            ready(root, cache, advance=stopping_after(count))
        folder = prepared_folder(FILES, Found(LAYOUT, root), cache)
        assert open_prepared(LAYOUT, folder, INTEGERS) is None
        done = {path: path.stat().st_ino for path in folder.glob("*.npy")}
        # Two images fill a shard; of the seven, the last is alone.
        assert len(done) >= count // 2 - 1
        assert contents(ready(root, cache)) == expected
        assert all(path.stat().st_ino == number for path, number in done.items())


FORK = multiprocessing.get_context("fork")


def killed(root, cache):
    """Prepare until the first shard of the second column, and die in the middle of writing it."""
    save = shards._save

    def half(array, path):
        if array.shape[1:] == (HEIGHT, WIDTH):
            path.write_bytes(b"half a shard")
            os.kill(os.getpid(), signal.SIGKILL)
        save(array, path)

    shards._save = half
    ready(root, cache)


def test_a_killed_process_leaves_what_another_goes_on_from(root, tmp_path):
    expected = contents(ready(root, tmp_path / "whole"))
    process = FORK.Process(target=killed, args=(root, tmp_path / "killed"))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    folder = prepared_folder(FILES, Found(LAYOUT, root), tmp_path / "killed")
    assert len(list(folder.glob("*.npy"))) == 4
    assert len(list(folder.glob(".*.part"))) == 1
    assert open_prepared(LAYOUT, folder, ()) is not None
    assert open_prepared(LAYOUT, folder, ("colour",)) is None
    assert contents(ready(root, tmp_path / "killed")) == expected


def test_a_task_that_is_asked_for_later_adds_its_column(root, tmp_path):
    folder = ready(root, tmp_path, ("colour",))
    before = contents(folder)
    assert open_prepared(LAYOUT, folder, INTEGERS) is None
    assert ready(root, tmp_path, ("pair",)) == folder
    after = contents(folder)
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    assert contents(ready(root, tmp_path / "both")) == after
    assert torch.equal(reopened(folder).train[2].targets["pair"], opened(root).train[2].targets["pair"])


def test_an_image_in_two_splits_is_kept_once(root, tmp_path):
    (root / "list.json").write_text(json.dumps({"train": [4, 2], "test": [8, 3]}))

    def shared(folder, tasks):
        listed = index(folder, tasks)
        return replace(listed, test=(listed.train[1], *listed.test))

    layout = replace(LAYOUT, index=shared)
    found = Found(layout, root)
    with pytest.warns(UserWarning, match="both for training and for test"):
        folder = prepare(dataset(), found, tmp_path / "shards", 1, lambda count: None)
    assert needed_bytes(layout, shared(root, ("colour",))) == 4 * (BYTES["image"] + BYTES["colour"])
    listed = open_prepared(layout, folder, INTEGERS).index(folder, INTEGERS)
    assert listed.test[0] == listed.train[1]
    assert len({entry["image"] for entry in (*listed.train, *listed.test)}) == 4


def test_an_image_with_two_sets_of_labels_is_refused(root, tmp_path):
    def mixed(folder, tasks):
        listed = index(folder, tasks)
        return replace(listed, test=({**listed.train[0], "colour": listed.test[0]["colour"]},))

    with (
        pytest.warns(UserWarning, match="both for training and for test"),
        pytest.raises(DataError, match=r"lists .*4-image.npy twice, with different labels"),
    ):
        prepare(dataset(), Found(replace(LAYOUT, index=mixed), root), tmp_path / "shards", 1, print)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_bad_file_is_named_and_the_rest_goes_on_once_it_is_replaced(root, tmp_path, workers):
    path = root / "train" / "7-codes.npy"
    good = path.read_bytes()
    path.write_bytes(good[:40])
    with pytest.raises(DataError, match=r"7-codes.npy cannot be read as a NumPy array"):
        ready(root, tmp_path, workers=workers)
    path.write_bytes(good)
    assert contents(ready(root, tmp_path)) == contents(ready(root, tmp_path / "whole"))


def test_images_of_another_size_are_refused(root, tmp_path):
    write_image(root, "test", 8, (HEIGHT + 1, WIDTH))
    with pytest.raises(
        DataError,
        match=r"8-image.npy holds uint8 of 3 x 7 x 8, the first image uint8 of 3 x 6 x 8: only images of one",
    ):
        ready(root, tmp_path)


def test_labels_of_another_size_than_the_image_are_refused(root, tmp_path):
    np.save(root / "train" / "4-colour.npy", np.zeros((5, 8), dtype=np.uint16))
    with pytest.raises(DataError, match=r"4-colour.npy has 5 x 8 pixels, but its image .*4-image.npy has 6 x 8"):
        ready(root, tmp_path)


def test_numbers_that_float16_cannot_hold_are_refused(root, tmp_path):
    path = root / "train" / "2-far.npy"
    array = np.load(path)
    array[0, 3, 3] = 65504
    np.save(path, array)
    ready(root, tmp_path / "largest", EVERYTHING)
    array[0, 3, 3] = -70000
    np.save(path, array)
    with pytest.raises(DataError, match=r"2-far.npy holds -70000, which float16 cannot: .* is 65504"):
        ready(root, tmp_path, EVERYTHING)


def test_a_layout_without_the_labels_is_refused(root, tmp_path):
    bare = replace(LAYOUT, columns={})
    with pytest.raises(DataError, match="toys needs labels for 'colour'"):
        prepare(dataset(), Found(bare, root), tmp_path / "shards", 1, print)


def test_a_disk_that_is_too_small_is_said_before_anything_is_read(root, tmp_path, monkeypatch):
    total = 7 * (BYTES["image"] + BYTES["colour"] + BYTES["pair"])
    usage = namedtuple("usage", "total used free")

    def disk(free):
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**12, 0, free))

    disk(total - 1)
    with pytest.raises(StoreError, match=r"take 0\.0 GB more, and 0\.0 GB are free. Free some space or choose"):
        ready(root, tmp_path, advance=lambda count: pytest.fail("something was read"))
    disk(total)
    folder = ready(root, tmp_path)
    disk(0)
    assert ready(root, tmp_path) == folder


def test_a_disk_that_fills_up_meanwhile_leaves_whole_shards_alone(root, tmp_path, monkeypatch):
    save, written = shards._save, []

    def full(array, path):
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(path)
        save(array, path)

    monkeypatch.setattr(shards, "_save", full)
    with pytest.raises(StoreError, match=r"Cannot write .*-00001.npy: No space left"):
        ready(root, tmp_path)
    monkeypatch.setattr(shards, "_save", save)
    assert contents(ready(root, tmp_path)) == contents(ready(root, tmp_path / "whole"))


def shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"?")


def empty(path):
    path.write_bytes(b"")


def scramble(path):
    path.write_bytes(b"?" * path.stat().st_size)


def retype(path):
    np.save(path, np.load(path).astype(np.int8))


def reshape(path):
    np.save(path, np.load(path)[:-1])


@pytest.mark.parametrize("harm", [shorten, lengthen, empty, scramble, retype, reshape])
@pytest.mark.parametrize("name", ["image-0-00000.npy", "pair-1-00002.npy"])
def test_a_damaged_shard_is_set_aside_and_made_again(root, tmp_path, harm, name):
    folder = ready(root, tmp_path)
    before = contents(folder)
    harm(folder / name)
    if contents(folder) == before:
        pytest.skip("a shard of one image of this type cannot be harmed so")
    damaged = (folder / name).read_bytes()
    assert [line.split(":")[0] for line in verify_prepared(folder)] == [str(folder / name)]
    with pytest.warns(UserWarning, match=rf"{re.escape(str(folder / name))} is damaged \(.+\); it is kept as"):
        assert open_prepared(LAYOUT, folder, INTEGERS) is None
    aside = folder / f"{name}.damaged-1"
    assert aside.read_bytes() == damaged
    with pytest.warns(UserWarning, match=rf"{name} is missing; prepare the images again"):
        assert open_prepared(LAYOUT, folder, INTEGERS) is None
    ready(root, tmp_path)
    aside.unlink()
    assert contents(folder) == before
    reopened(folder)


def test_a_damaged_shard_of_a_task_that_is_not_asked_for_does_no_harm(root, tmp_path):
    folder = ready(root, tmp_path)
    empty(folder / "pair-0-00000.npy")
    assert open_prepared(LAYOUT, folder, ("colour",)) is not None


def test_a_shard_is_set_aside_by_who_prepares_too(root, tmp_path):
    folder = ready(root, tmp_path)
    before = contents(folder)
    shorten(folder / "colour-0-00001.npy")
    with pytest.warns(UserWarning, match="colour-0-00001.npy is damaged"):
        ready(root, tmp_path)
    (folder / "colour-0-00001.npy.damaged-1").unlink()
    assert contents(folder) == before


def test_a_bit_that_flipped_is_found_by_the_checksum_alone(root, tmp_path):
    folder = ready(root, tmp_path)
    path = folder / "colour-0-00002.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert open_prepared(LAYOUT, folder, INTEGERS) is not None
    assert verify_prepared(folder) == [
        f"{path}: it has another checksum than when it was made. Remove it and prepare the images again."
    ]
    path.unlink()
    assert verify_prepared(folder) == [f"{path}: it is missing. Remove it and prepare the images again."]
    ready(root, tmp_path)
    assert verify_prepared(folder) == []


def test_shards_are_not_mended_from_files_that_changed(root, tmp_path):
    folder = ready(root, tmp_path)
    (folder / "colour-0-00000.npy").unlink()
    np.save(root / "train" / "4-colour.npy", np.zeros((HEIGHT, WIDTH), dtype=np.uint16))
    with pytest.raises(DataError, match=r"colour-0-00000.npy was made again and is not what it was: the files"):
        ready(root, tmp_path)


HARMED = {
    "cut off": lambda text: text[:-20],
    "no object": lambda text: text.replace('"columns": {', '"columns": [{').rstrip()[:-1] + "]}",
    "no images": lambda text: text.replace('"images"', '"pictures"'),
    "no type": lambda text: text.replace('"uint8"', '"uint9"'),
    "no rows": lambda text: text.replace('"rows": 2', '"rows": 0'),
}


@pytest.mark.parametrize("harm", HARMED.values(), ids=HARMED)
def test_a_damaged_manifest_sets_the_folder_aside(root, tmp_path, harm):
    folder = ready(root, tmp_path)
    before, path = contents(folder), folder / "manifest.json"
    path.write_text(harm(path.read_text()))
    damaged = path.read_text()
    assert len(verify_prepared(folder)) == 1
    with pytest.raises(DataError, match=r"is damaged: manifest.json .* Prepare the images again"):
        prepared_at(FILES, folder)
    with pytest.warns(UserWarning, match=rf"{folder.name} is damaged \(manifest.json .*; it is kept as"):
        assert open_prepared(LAYOUT, folder, INTEGERS) is None
    assert (folder.with_name(f"{folder.name}.damaged-1") / "manifest.json").read_text() == damaged
    assert open_prepared(LAYOUT, folder, INTEGERS) is None
    assert contents(ready(root, tmp_path)) == before


def test_a_manifest_of_another_version_is_left_alone(root, tmp_path):
    folder = ready(root, tmp_path)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    before = contents(folder)
    for use in (lambda: open_prepared(LAYOUT, folder, INTEGERS), lambda: ready(root, tmp_path)):
        with pytest.raises(DataError, match=r"manifest.json is of version 2; this mtlprune-bench reads version 1"):
            use()
    assert contents(folder) == before


def test_a_folder_of_other_things_is_never_touched(root, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"mine holds files that are no prepared images. Choose an empty folder"):
        prepare(dataset(), Found(LAYOUT, root), folder, 1, print)
    (folder / "manifest.json").write_text("something else")
    assert open_prepared(LAYOUT, folder, INTEGERS) is None
    assert prepared_at(FILES, folder) is None
    assert verify_prepared(folder) == [f"{folder} holds no prepared images."]
    with pytest.raises(DataError, match=r"thesis.tex holds files that are no prepared images"):
        prepare(dataset(), Found(LAYOUT, root), folder / "thesis.tex", 1, print)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_the_present_folder_can_be_named(root, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert prepare(dataset(), Found(LAYOUT, root), Path(), 1, lambda count: None) == tmp_path / "here"
    assert contents(tmp_path / "here") == contents(ready(root, tmp_path))


def test_a_folder_of_other_images_is_refused(root, tmp_path):
    folder = ready(root, tmp_path)
    (root / "list.json").write_text(json.dumps({"train": [4, 2], "test": [3]}))
    with pytest.raises(DataError, match="was prepared from other images than those that layout 'toy' lists now"):
        prepare(dataset(), Found(LAYOUT, root), folder, 1, print)


def test_nothing_there_is_nothing_to_open(tmp_path):
    assert open_prepared(LAYOUT, tmp_path / "none", INTEGERS) is None
    assert prepared_at(FILES, tmp_path / "none") is None
    (tmp_path / "file").write_text("")
    assert prepared_at(FILES, tmp_path / "file") is None


def test_a_folder_stands_without_the_originals_and_where_it_is_moved(root, tmp_path):
    expected = opened(root).train[1].targets["pair"]
    folder = ready(root, tmp_path / "cache").rename(tmp_path / "moved")
    root.rename(tmp_path / "gone")
    layout, place = prepared_at(FILES, folder)
    assert (layout, place) == (LAYOUT, folder)
    assert torch.equal(reopened(place).train[1].targets["pair"], expected)
    assert prepared_at(replace(FILES, folders=("others",)), folder) is None
    with pytest.raises(UsageError, match="Unknown layout of Toys 'toy'"):
        prepared_at(replace(FILES, layouts=()), folder)
    assert open_prepared(replace(LAYOUT, name="another"), folder, INTEGERS) is None


def second(root, cache, held, heard):
    """Prepare as soon as another process holds the lock; what is said goes to the file `heard`."""
    held.wait(30)
    with heard.open("w", buffering=1) as sys.stderr:
        ready(root, cache)


def test_a_second_process_waits_and_finds_the_work_done(root, tmp_path):
    expected = contents(ready(root, tmp_path / "whole"))
    held, heard = FORK.Event(), tmp_path / "heard"
    process = FORK.Process(target=second, args=(root, tmp_path / "shared", held, heard))
    process.start()

    def advance(count):
        held.set()
        until = time.monotonic() + 30
        while not (heard.exists() and heard.read_text()) and time.monotonic() < until:
            time.sleep(0.02)

    folder = ready(root, tmp_path / "shared", advance=advance)
    process.join(30)
    assert process.exitcode == 0
    assert heard.read_text() == f"Waiting for process {os.getpid()}, which is preparing these images.\n"
    assert contents(folder) == expected


def own_memory():
    """Return the bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_reading_more_samples_takes_no_more_memory(tmp_path):
    root, numbers = tmp_path / "toys", range(24)
    size = (200, 300)
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for number in numbers:
            write_image(root, split, number, size)
    (root / "list.json").write_text(json.dumps({"train": list(numbers), "test": list(numbers)}))
    samples = reopened(ready(root, tmp_path)).train

    def total(count):
        return sum(int(samples[number].image.numpy().sum()) for number in range(count))

    total(6)
    before = own_memory()
    seen = total(18)
    # Twelve images more are 2.2 MB.
    assert own_memory() - before < 200_000
    kept = [number for number in range(19) if number != 9]  # The tenth is held out.
    assert seen == sum(int(np.load(root / "train" / f"{number}-image.npy").sum()) for number in kept)


def test_few_shards_stay_mapped(root, tmp_path):
    samples = reopened(ready(root, tmp_path)).train
    for number in range(4):
        assert samples[number].image.shape == (3, HEIGHT, WIDTH)
    assert shards.mapped.cache_info().maxsize == shards.OPEN_SHARDS <= 512
    assert 0 < shards.mapped.cache_info().currsize <= shards.OPEN_SHARDS


def test_a_shard_that_vanishes_while_it_is_read_is_named(root, tmp_path):
    folder = ready(root, tmp_path)
    samples = reopened(folder).train
    (folder / "image-0-00000.npy").unlink()
    with pytest.raises(DataError, match=r"image-0-00000.npy cannot be read as a shard of prepared images"):
        _ = samples[0]


def test_preparing_and_reading_warn_of_nothing(root, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = stream(reopened(ready(root, tmp_path, EVERYTHING), EVERYTHING), EVERYTHING)[0]
    assert batch.images.shape == (3, 3, 5, 5)
