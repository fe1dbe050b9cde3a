"""Pictures of samples: whole pixels, nothing clipped, captions and keys that say what is there."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageColor

from mtlprune_bench import Labels, Sample, Task
from mtlprune_bench.data.pictures import GAP, MARGIN, PAPER, STRIPES, class_legend, colour_bar, describe, draw, fit
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.tasks import grey

REGISTRY = load_registry()
SCENES = REGISTRY.get("datasets", "scenes")
TASKS = {entry.name: entry.value for entry in REGISTRY.of_kind("tasks")}
VOID = 255


def dataset(*labels, description="Some rooms."):
    return replace(SCENES, labels=labels, description=description)


def sample_of(size, labels, share=0.8, seed=0):
    """Return a sample with random pixels of which `share` are valid."""
    generator = torch.Generator().manual_seed(seed)
    targets, masks = {}, {}
    for asked in labels:
        mask = torch.rand(size, generator=generator) < share
        if asked.classes:
            target = torch.randint(asked.classes, size, generator=generator).masked_fill(~mask, VOID)
        else:
            channels = TASKS[asked.task].channels if asked.task in TASKS else 1
            target = torch.rand((channels, *size), generator=generator) * mask
        targets[asked.task], masks[asked.task] = target, mask
    image = torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)
    return Sample.of(image, targets, masks)


def pixels_of(sheet):
    return np.asarray(sheet)


def places_of(picture, sheet):
    """Return the (row, column) at which `picture` lies in `sheet`."""
    height, width = picture.shape[:2]
    rows, columns = np.nonzero(sheet[: 1 - height, : 1 - width, 0] == picture[0, 0, 0])
    for row, column in np.random.default_rng(0).integers((height, width), size=(40, 2)):
        same = (sheet[rows + row, columns + column] == picture[row, column]).all(-1)
        rows, columns = rows[same], columns[same]
    return [
        (row, column)
        for row, column in zip(rows, columns, strict=True)
        if np.array_equal(sheet[row : row + height, column : column + width], picture)
    ]


@pytest.mark.parametrize("size", [(480, 640), (96, 128), (64, 16), (40, 200)])
def test_a_sheet_has_every_picture_at_a_whole_factor_with_paper_around(size):
    sample = sample_of(size, SCENES.labels)
    sheet = draw(sample, SCENES, TASKS, "A title")
    pixels = pixels_of(sheet)
    assert (sheet.mode, pixels.dtype) == ("RGB", np.uint8)
    image = sample.image.numpy().transpose(1, 2, 0)
    pictures = [image.repeat(640 // max(size), 0).repeat(640 // max(size), 1)]
    for labels in SCENES.labels:
        target, mask = sample.targets[labels.task].numpy(), sample.masks[labels.task].numpy()
        pictures.append(fit(TASKS[labels.task].picture(target, mask, labels), mask))
    found = [places_of(picture, pixels) for picture in pictures]
    assert [len(places) for places in found] == [1] * 6
    rows, columns = zip(*(places[0] for places in found), strict=True)
    assert columns[:3] == columns[3:]
    assert columns[0] == MARGIN
    assert min(np.diff(columns[:3])) >= pictures[0].shape[1] + GAP
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4] == rows[5]
    assert paper_around(pixels)


def paper_around(pixels):
    """Return whether the margin is empty on all four sides: nothing runs out of the sheet."""
    used = (pixels != ImageColor.getrgb(PAPER)).any(-1)
    return used.any() and used.sum() == used[MARGIN:-MARGIN, MARGIN:-MARGIN].sum()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6])
def test_nothing_is_clipped_for_any_number_of_tasks_and_any_words(count):
    names = [f"a task with a name that is wider than its picture {number}" for number in range(count)]
    labels = [Labels(name, unit="unit of many letters per second") for name in names]
    tasks = {name: Task(name=name, description="", loss=None, channels=1) for name in names}
    title = "/a/path/" + "without/any/space/" * 40
    sheet = draw(sample_of((12, 5), labels), dataset(*labels, description="words " * 100), tasks, title)
    assert paper_around(pixels_of(sheet))
    once = draw(sample_of((12, 5), labels), dataset(*labels), tasks, "a title")
    assert sheet.width == once.width
    assert sheet.height > once.height


@pytest.mark.parametrize("where", ["name", "unit"])
def test_the_last_letter_of_a_caption_is_drawn(where):
    def ink(words):
        labels = Labels("depth", unit=words) if where == "unit" else Labels(words)
        task = Task(name=labels.task, description="", loss=None, channels=1)
        sheet = pixels_of(draw(sample_of((12, 5), [labels]), dataset(labels), {labels.task: task}, ""))
        return (sheet < 128).all(-1).sum()

    assert ink("word " * 20 + "M") > ink("word " * 20)


def test_forty_classes_fit_below_a_narrow_picture():
    labels = Labels("segmentation", classes=40)
    sheet = draw(sample_of((90, 20), [labels], share=1), dataset(labels), TASKS, "")
    pixels = pixels_of(sheet)
    assert paper_around(pixels)
    colours = TASKS["segmentation"].picture(np.arange(40)[None], np.ones((1, 40), bool), labels)[0]
    last = [np.nonzero((pixels == colour).all(-1))[0].max() for colour in colours]
    assert min(last) > MARGIN + 640, "a class has no colour in the legend"


def test_a_large_picture_is_reduced():
    image = np.arange(1300 * 700 * 3, dtype=np.uint32).astype(np.uint8).reshape(1300, 700, 3)
    mask = np.ones((1300, 700), bool)
    assert np.array_equal(fit(image, mask), image[::3, ::3])
    assert fit(image[:640, :640], mask[:640, :640]).shape == (640, 640, 3)
    assert fit(image[:641, :641], mask[:641, :641]).shape == (321, 321, 3)


def test_exactly_the_pixels_without_a_label_are_striped():
    rng = np.random.default_rng(0)
    picture = rng.integers(200, 256, (20, 30, 3), dtype=np.uint8)
    mask = rng.random((20, 30)) < 0.5
    fitted = fit(picture, mask)
    large = mask.repeat(21, 0).repeat(21, 1)
    assert np.array_equal(fitted[large], picture.repeat(21, 0).repeat(21, 1)[large])
    assert {tuple(colour) for colour in fitted[~large]} == {(grey, grey, grey + 8) for grey, _, _ in STRIPES}


def test_only_sheets_with_stripes_explain_them():
    labels = Labels("depth", unit="m")

    def head(share, description):
        sample = sample_of((4, 8), [labels], share)
        return pixels_of(draw(sample, dataset(labels, description=description), TASKS, "title"))[: 3 * MARGIN]

    striped, whole, told = (
        head(0.5, "Rooms."),
        head(1, "Rooms."),
        head(1, "Rooms. Pixels without a label are striped."),
    )
    assert np.array_equal(striped, told)
    assert not np.array_equal(whole, told)


def test_a_sheet_is_a_function_of_its_arguments():
    sample = sample_of((24, 32), SCENES.labels)
    first, again = (draw(sample, SCENES, TASKS, "title").tobytes() for _ in range(2))
    assert first == again
    assert draw(sample, SCENES, TASKS, "another").tobytes() != first


def test_the_facts_of_classes():
    target = np.array([[0, 0, 0, 2], [0, 0, 7, VOID]])
    labels = Labels("segmentation", classes=9)
    panel = describe(TASKS["segmentation"], labels, target, target != VOID)
    assert (panel.heading, panel.facts) == ("segmentation", "3 of 9 classes, 87.5 % valid")
    assert panel.key.words == ("0: 71.4 %", "2: 14.3 %", "7: 14.3 %")
    assert np.array_equal(panel.key.colours, panel.picture[[0, 0, 1], [0, 3, 2]])


def test_shares_never_round_to_nothing_or_to_all():
    target = np.zeros((100, 100), int)
    target[0, 0] = 1
    legend = class_legend(target, np.ones_like(target, bool), np.zeros((100, 100, 3), np.uint8))
    assert legend.words == ("0: > 99.9 %", "1: < 0.1 %")


@pytest.mark.parametrize(
    ("unit", "facts", "low", "high"),
    [("m", "−0.5 to 2.12 m, 75 %", "−0.5 m", "2.12 m"), ("", "−0.5 to 2.12, 75 %", "−0.5", "2.12")],
)
def test_the_facts_of_values(unit, facts, low, high):
    target = np.array([[[-0.5, 1.0], [2.123, 99.0]]])
    task = Task(name="distance", description="", loss=None)
    panel = describe(task, Labels("distance", unit=unit), target, target[0] < 9)
    assert panel.facts == facts.replace("75 %", "75.0 % valid")
    assert (panel.key.low, panel.key.high) == (low, high)


def test_several_channels_have_a_range_but_no_bar():
    target = np.stack([np.zeros((2, 2)), np.ones((2, 2))])
    panel = describe(Task(name="flow", description="", loss=None), Labels("flow"), target, np.ones((2, 2), bool))
    assert (panel.facts, panel.key) == ("2 channels, 0 to 1, 100 % valid", None)


@pytest.mark.parametrize("labels", SCENES.labels, ids=lambda labels: labels.task)
def test_without_a_valid_pixel_there_is_nothing_to_explain(labels):
    sample = sample_of((6, 8), [labels], share=0)
    target, mask = sample.targets[labels.task].numpy(), sample.masks[labels.task].numpy()
    panel = describe(TASKS[labels.task], labels, target, mask)
    assert (panel.facts, panel.key) == ("no pixel is valid", None)
    assert (panel.picture == 0).all()
    assert paper_around(pixels_of(draw(sample, dataset(labels), TASKS, "")))


class TestColourBar:
    def test_runs_through_the_colours_of_the_picture_by_value(self):
        values = np.random.default_rng(0).permutation(np.linspace(2, 4, 3000)).reshape(50, 60)
        mask = values < 3.5
        bar = colour_bar(values, mask, grey(values[None], mask, Labels("")), " m")
        assert (bar.low, bar.high) == ("2 m", "3.5 m")
        assert np.abs(bar.colours[:, 0] - np.linspace(0, 255, 256)).max() <= 2

    def test_ends_where_the_colours_stop_changing(self):
        values = np.linspace(0, 10, 1001).reshape(7, 143)
        shown = np.rint(values.clip(2, 6)[..., None] * 40).astype(np.uint8).repeat(3, -1)
        bar = colour_bar(values, np.ones((7, 143), bool), shown)
        low, high = (
            float(re.fullmatch(sign + r" (\S+)", end)[1]) for sign, end in (("≤", bar.low), ("≥", bar.high))
        )
        assert low == pytest.approx(2, abs=0.02)
        assert high == pytest.approx(6, abs=0.02)
        assert bar.colours[0, 0] == 80
        assert bar.colours[-1, 0] == 240

    def test_of_a_whole_scale_ends_where_the_values_do(self):
        values = np.linspace(-1, 1, 3000).reshape(50, 60)
        mask = np.ones_like(values, bool)
        bar = colour_bar(values, mask, TASKS["keypoints"].picture(values[None], mask, Labels("keypoints")))
        assert (bar.low, bar.high) == ("−1", "1")

    def test_of_equal_values_has_one_colour(self):
        values = np.full((3, 4), 1.5)
        bar = colour_bar(values, np.ones((3, 4), bool), np.full((3, 4, 3), 9, np.uint8))
        assert (bar.low, bar.high) == ("1.5", "1.5")
        assert (bar.colours == 9).all()
