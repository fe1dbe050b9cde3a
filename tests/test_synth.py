"""Generated files: in every layout of every dataset they are written, found, read and trained on."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from mtlprune_bench import DISPARSE, STANDARD, DataError, PluginError, UsageError
from mtlprune_bench.data.locate import locate
from mtlprune_bench.data.photos import check_labels, open_photos
from mtlprune_bench.data.prepared import open_prepared, prepare
from mtlprune_bench.data.synth import Drawn, synthesise
from mtlprune_bench.errors import StoreError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.tasks import Labels, Objective
from mtlprune_bench.training.batches import Stream

REGISTRY = load_registry()
SCENES = REGISTRY.get("datasets", "scenes")
TASKS = {entry.name: entry.value for entry in REGISTRY.of_kind("tasks")}
SEED, SMALLER = 37, 8
TOLERANCE = {"normals": 7e-3, "depth": 1e-5, "keypoints": 4e-3, "edges": 3e-4}
"""Half a step of the coarsest files: 8-bit normals, of length 1 again; 16 bits for the rest."""


def readable(dataset, layout):
    try:
        check_labels(dataset, layout)
    except DataError:
        return False
    return True


CASES = [
    pytest.param(entry.value, layout, id=f"{entry.name}-{layout.name}")
    for entry in REGISTRY.of_kind("datasets")
    if entry.value.files is not None
    for layout in entry.value.files.layouts
    if readable(entry.value, layout)
]
ONE = {case.values[1].name: case for case in reversed(CASES)}["adashare"]


@functools.cache
def drawn(labels, size, count, seed):
    """Return generated samples; they take the most time, and several layouts have the same labels."""
    samples = SCENES.generate(labels, size, count, seed)
    return [samples[number] for number in range(count)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a function that writes files in a layout, once: their folder, and what was drawn, by split.

    Small images and three for training, or of the layout's own size and one where it reads no others.
    """
    known = {}

    def write(dataset, layout):
        key = dataset.files.folders[0], layout.name
        if key not in known:
            small = tuple(side // SMALLER for side in layout.size)
            known[key] = attempt(dataset, layout, small, 3) or attempt(dataset, layout, layout.size, 1)
        return known[key]

    def attempt(dataset, layout, size, count):
        root, done = tmp_path_factory.mktemp(layout.name), []
        generator = replace(SCENES, generate=drawn)
        try:
            numbers = synthesise(layout, generator, root, count, SEED, size, done.append)
        except UsageError:
            if size == layout.size:
                raise
            return None
        assert numbers == {"train": count, "test": 1}
        assert done == [1] * (count + 1)
        samples = drawn(layout.writes, size, count + 1, SEED)
        return root, {"train": samples[:count], "test": samples[count:]}

    return write


def opened(dataset, layout, root, protocol=STANDARD):
    found = locate(dataset.files, root, layout.name)
    assert (found.layout.name, found.root) == (layout.name, root.resolve())
    return open_photos(dataset, found.layout, found.root, protocol)


def test_every_dataset_with_files_can_be_read_in_some_layout():
    names = {entry.name for entry in REGISTRY.of_kind("datasets") if entry.value.files is not None}
    assert {case.values[0].name for case in CASES} == names
    assert len(names) > 1


@pytest.mark.parametrize(("dataset", "layout"), CASES)
def test_what_is_read_is_what_was_drawn(dataset, layout, written):
    root, truths = written(dataset, layout)
    splits = opened(dataset, layout, root)
    given = {labels.task: labels for labels in layout.writes}
    assert not all(mask.all() for mask in truths["train"][0].masks.values()), "there is no invalid pixel to lose"
    for split, samples in truths.items():
        read = getattr(splits, split)
        assert len(read) == len(samples)
        for number, truth in enumerate(samples):
            found = read[number]
            assert torch.equal(found.image, truth.image)
            for labels in dataset.labels:
                compare(labels, given[labels.task], found, truth)


def compare(labels, given, found, truth):
    """Assert that a target is the one drawn, or follows from it where its classes or its unit are others."""
    target, mask, value = (by_task[labels.task] for by_task in (found.targets, found.masks, truth.targets))
    assert torch.equal(mask, truth.masks[labels.task])
    assert mask.any()
    target, value = target[..., mask], value[..., mask]
    if labels.classes:
        assert 0 <= target.min() <= target.max() < labels.classes
        if labels.classes == given.classes:
            assert torch.equal(target, value)
        assert torch.stack([target, value]).unique(dim=1).shape[1] == len(value.unique())
    elif labels.unit == given.unit:
        assert torch.allclose(target, value, atol=TOLERANCE[labels.task], rtol=0)
    else:
        steps = target[0, value[0].argsort()].diff() / target.max()
        assert min(steps.max(), -steps.min()) < 1e-3, "neither rises nor falls with what was drawn"


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize(("dataset", "layout"), CASES)
def test_training_batches_are_finite_and_labelled(dataset, layout, protocol, written):
    splits = opened(dataset, layout, written(dataset, layout)[0], protocol)
    labels = {labels.task: labels for labels in dataset.labels}
    objective = Objective({task: TASKS[task] for task in labels}, labels, dataset.loss_weights, protocol)
    batch = Stream(splits, objective, replace(dataset.train, batch=2, crop=24), seed=0)[0]
    assert batch.images.shape == (2, 3, 24, 24)
    assert batch.images.isfinite().all()
    for task in labels:
        assert batch.masks[task].shape == (2, 24, 24)
        assert batch.masks[task].any()
        assert batch.targets[task].isfinite().all()


def test_training_and_test_images_are_all_different(written):
    dataset, layout = ONE.values
    splits = opened(dataset, layout, written(dataset, layout)[0])
    images = [splits.train[number].image.numpy().tobytes() for number in range(3)]
    assert len({*images, splits.test[0].image.numpy().tobytes()}) == 4


def made(root, **changes):
    """Write two images into `root` in the first layout, or as `changes` ask, and return their numbers by split."""
    settings = {"layout": ONE.values[1], "generator": SCENES, "count": 1, "seed": 0, "size": (6, 8)}
    return synthesise(root=root, advance=lambda count: None, **{**settings, **changes})


def content(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("count", "test"), [(1, 1), (3, 1), (4, 1), (7, 1), (8, 2)])
def test_a_quarter_as_many_for_the_test(tmp_path, count, test):
    assert made(tmp_path, count=count) == {"train": count, "test": test}


def test_files_are_a_function_of_the_seed(tmp_path):
    for folder, seed in (("one", 3), ("again", 3), ("other", 4)):
        made(tmp_path / folder, seed=seed)
    one, again, other = (content(tmp_path / folder) for folder in ("one", "again", "other"))
    assert one == again
    assert one.keys() == other.keys()
    assert one != other


def test_the_layouts_size_is_the_default(tmp_path):
    made(tmp_path, layout=replace(ONE.values[1], size=(6, 10)), size=None)
    assert opened(*ONE.values, tmp_path).train[0].image.shape == (3, 6, 10)


def test_samples_are_drawn_one_at_a_time_and_only_when_asked_for():
    asked, told = [], []

    class Counting:
        def __getitem__(self, index):
            asked.append(index)
            return f"sample {index}"

    samples = Drawn(Counting(), 10, 3, told.append)
    assert (len(samples), asked) == (3, [])
    assert [samples[0], samples[0]] == ["sample 10"] * 2
    assert (asked, told) == ([10], [1])
    assert list(samples) == ["sample 10", "sample 11", "sample 12"]
    assert samples[0] == "sample 10"
    assert (asked, told) == ([10, 11, 12, 10], [1, 1, 1])
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"no image {index} among 3"):
            samples[index]


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path):
    (tmp_path / ".hidden").write_text("mine")
    with pytest.raises(DataError, match=r"is not empty, there is \.hidden\. Empty it or choose") as caught:
        made(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert content(tmp_path).keys() == {(tmp_path / ".hidden").relative_to(tmp_path)}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match=f"Cannot write {root}: .* choose another folder"):
            made(root)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_was_not_finished(tmp_path, failure):
    def interrupted(root, splits):
        for sample in splits["train"]:
            (root / "train").mkdir()
            (root / "train" / "0.png").write_bytes(sample.image.numpy().tobytes())
            raise failure

    wanted = (StoreError, KeyboardInterrupt)
    with pytest.raises(wanted) as caught:
        made(tmp_path / "new", layout=replace(ONE.values[1], write=interrupted))
    assert isinstance(failure, KeyboardInterrupt) or "No space left on device" in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []


def test_labels_that_the_generator_lacks(tmp_path):
    layout = replace(ONE.values[1], writes=(Labels("segmentation", classes=41),))
    with pytest.raises(DataError, match="have 4 to 40 classes, not 41"):
        made(tmp_path / "new", layout=layout)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("count", "size"), [(0, (6, 8)), (-1, (6, 8)), (1, (0, 8)), (1, (6, -8))])
def test_nothing_to_write(tmp_path, count, size):
    with pytest.raises(UsageError, match=f"nothing to write: {count} images of {size[0]} x {size[1]} pixels"):
        made(tmp_path / "new", count=count, size=size)
    assert not (tmp_path / "new").exists()


def test_only_generated_datasets_generate(tmp_path):
    with pytest.raises(PluginError, match=f"'{ONE.values[0].name}' has no generate"):
        made(tmp_path / "new", generator=ONE.values[0])


def test_what_is_generated_is_never_taken_for_real(tmp_path):
    dataset, layout = ONE.values
    splits = {}
    for seed in (0, 1):
        synthesise(layout, SCENES, tmp_path / str(seed), 1, seed, (6, 8), lambda count: None)
        splits[seed] = opened(dataset, layout, tmp_path / str(seed))
    assert splits[0].generated
    assert splits[0].origin.endswith(f"; GENERATED, not real ({SCENES.name}, seed 0, 6 x 8 pixels)")
    assert splits[0].fingerprint != splits[1].fingerprint, "other scenes, other results"
    (tmp_path / "0" / "GENERATED.txt").unlink()
    assert not opened(dataset, layout, tmp_path / "0").generated


@pytest.mark.parametrize(("dataset", "layout"), CASES)
def test_prepared_images_are_those_of_the_files(dataset, layout, written, tmp_path):
    root, _ = written(dataset, layout)
    found = locate(dataset.files, root, layout.name)
    tasks = tuple(labels.task for labels in dataset.labels)
    folder = prepare(dataset, found, tmp_path / "prepared", 2, lambda count: None)
    prepared = open_prepared(found.layout, folder, tasks)
    files = opened(dataset, layout, root)
    shards = open_photos(dataset, prepared, folder, STANDARD)
    lossy = shards.fingerprint != files.fingerprint
    assert shards.fingerprint == files.fingerprint + ("-float16" if lossy else "")
    assert shards.generated
    for split in ("train", "test"):
        for one, other in zip(getattr(files, split), getattr(shards, split), strict=True):
            assert torch.equal(one.image, other.image)
            for task in tasks:
                exact = all(array.dtype.kind != "f" for array in one.labels[task].stored)
                assert exact or lossy
                valid = one.masks[task] & other.masks[task]
                assert torch.equal(one.masks[task], other.masks[task]) or not exact
                assert valid.sum() > 0.99 * one.masks[task].sum()
                before, after = (sample.targets[task][..., valid].double() for sample in (one, other))
                # Half of the last of float16's 11 binary places, and what decoding makes of it.
                assert torch.allclose(before, after, rtol=0 if exact else 2**-9, atol=0)
