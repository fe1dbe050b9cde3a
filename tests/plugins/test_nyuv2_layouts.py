"""What every layout of NYU-v2 keeps: photographs survive being written and read, and 13 classes are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nyuv2_trees import (
    ALL,
    ALL_THIRTEEN,
    FILES,
    LAYOUTS,
    SEGMENTATION,
    THIRTEEN,
    opened,
    photographs,
    write,
)

from mtlprune_bench import DISPARSE, STANDARD, DataError, Sample
from mtlprune_bench.data.locate import locate
from mtlprune_bench.plugins.datasets.nyuv2.classes import THIRTEEN_OF_FORTY, table

NAMES = ["adashare", "mtan", "official"]
HALF_A_CODE = 0.5 / 127.5
THIRTEEN_NAMES = [
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects"),
    *("picture", "sofa", "table", "tv", "wall", "window"),
]


def test_the_layouts_in_the_order_in_which_they_are_looked_for():
    assert list(LAYOUTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
def test_photographs_survive_being_written_and_read(tmp_path, name, protocol):
    labels = LAYOUTS[name].writes
    samples = photographs(labels[0].classes, train=3, test=2)
    write(tmp_path, name, samples)
    splits = opened(tmp_path, labels, protocol)
    assert splits.origin == f"NYU-v2, layout {name}, 3 training and 2 test images"
    assert splits.fingerprint.startswith(f"nyuv2-{name}-")
    for split in ("train", "test"):
        read = getattr(splits, split)
        assert len(read) == len(samples[split])
        for number, sample in enumerate(samples[split]):
            compare(read[number], sample, codes=name != "mtan", protocol=protocol)


def compare(read, sample, codes, protocol):
    """Assert that two photographs are the same, normals up to their codes."""
    assert torch.equal(read.image, sample.image)
    assert read.image.dtype == torch.uint8
    for task in ("segmentation", "normals", "depth"):
        assert torch.equal(read.masks[task], sample.masks[task]), task
        assert read.masks[task].dtype == torch.bool
        assert read.targets[task].dtype == sample.targets[task].dtype
    assert torch.equal(read.targets["segmentation"], sample.targets["segmentation"])
    assert torch.equal(read.targets["depth"], sample.targets["depth"])
    normals, facing = read.targets["normals"], sample.masks["normals"]
    assert torch.allclose(normals.norm(dim=0), facing.float(), atol=1e-6)
    if not codes:
        assert torch.allclose(normals, sample.targets["normals"], atol=1e-6)
    elif protocol is STANDARD:
        # Half a code in each component, and as much again from making the vector's length 1.
        assert (normals - sample.targets["normals"]).abs().max() < 2 * HALF_A_CODE
    else:
        right, down, forward = sample.targets["normals"].double()
        raw = ((torch.stack([-down, forward, right]) + 1) * 127.5).floor() * facing
        assert torch.allclose(normals.double(), raw / raw.norm(dim=0).clamp(min=1), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_tasks_asked_for_are_in_the_index(tmp_path, name):
    root = write(tmp_path, name)
    sample = opened(root, (LAYOUTS[name].writes[2],)).train[0]
    assert set(sample.labels) == {"depth"}


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_may_be_given_any_part_of_the_image(tmp_path, name):
    root = write(tmp_path, name)
    whole = opened(root, LAYOUTS[name].writes).train[0]
    for task, labelling in whole.labels.items():
        part = labelling.decode(*(array[..., 1:4, 3:] for array in labelling.stored))
        assert np.array_equal(part[0], whole.targets[task][..., 1:4, 3:])
        assert np.array_equal(part[1], whole.masks[task][..., 1:4, 3:])


def test_thirteen_classes_are_the_same_in_every_layout(tmp_path):
    samples = photographs(40)
    thirteen = {split: [with_thirteen(sample) for sample in made] for split, made in samples.items()}
    for name in NAMES:
        root = write(tmp_path / name, name, thirteen if name == "mtan" else samples)
        splits = opened(root, ALL_THIRTEEN)
        for split, expected in thirteen.items():
            for number, sample in enumerate(expected):
                read = getattr(splits, split)[number]
                assert torch.equal(read.targets["segmentation"], sample.targets["segmentation"])
                assert torch.equal(read.masks["segmentation"], sample.masks["segmentation"])


def with_thirteen(sample):
    """Return a photograph with 13 classes for its 40."""
    targets, masks = sample.targets, sample.masks
    mapped = torch.tensor([*(number - 1 for number in THIRTEEN_OF_FORTY), *[255] * 216])
    targets["segmentation"] = mapped[targets["segmentation"]]
    return Sample.of(sample.image, targets, masks)


def test_thirteen_classes_by_name():
    """A wall is a wall, and so on: classes of the forty that have a name of the thirteen."""
    forty = {1: "wall", 2: "floor", 4: "bed", 5: "chair", 6: "sofa", 7: "table", 9: "window", 22: "ceiling"}
    forty |= {23: "books", 25: "tv", 11: "picture"}
    for number, name in forty.items():
        assert THIRTEEN_NAMES[table(13)[number - 1]] == name
    assert table(13)[255] == table(40)[255] == 255
    assert np.array_equal(table(40)[:40], np.arange(40))
    assert set(table(13)[:40]) == set(range(13))


def test_the_thirteen_classes_are_the_published_ones(samples_folder):
    from scipy.io import loadmat

    published = loadmat(samples_folder / "nyuv2_meta" / "class13Mapping.mat")["classMapping13"][0, 0]
    assert published["labels13"].ravel().tolist() == list(THIRTEEN_OF_FORTY)
    assert [str(name[0]) for name in published["classNames"].ravel()] == THIRTEEN_NAMES


def test_forty_classes_cannot_be_read_from_thirteen(tmp_path):
    root = write(tmp_path, "mtan")
    with pytest.raises(DataError, match="needs 40 classes; layout 'mtan' has 13"):
        opened(root, (SEGMENTATION,))


def test_of_two_layouts_in_one_folder_the_first_or_the_named_one_is_read(tmp_path):
    for name in NAMES:
        write(tmp_path, name)
    assert locate(FILES, tmp_path).layout.name == "adashare"
    for name in NAMES:
        assert f"layout {name}," in opened(tmp_path, (THIRTEEN,), layout=name).origin


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_of_a_layout_is_said(tmp_path, name):
    root = write(tmp_path, name)
    sign = LAYOUTS[name].signs[-1]
    (root / sign).rename(tmp_path / "moved")
    with pytest.raises(DataError, match=f"The nearest is '{name}', .*, but no {sign}"):
        opened(root, ALL)
