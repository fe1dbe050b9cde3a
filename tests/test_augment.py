"""Augmentation: every pixel against a slow reference that makes the whole enlarged picture."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import warp as reference
from torch.nn import functional as F

from mtlprune_bench.training.augment import Warp, draw_warp, inside, warp_image, warp_labels

FILL = torch.tensor([10.0, 20.0, 30.0])
EMPTY = -1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(seed, size, crop, scales=(0.5, 1.5)):
    return draw_warp(generator(seed), size, crop, scales, 0.5)


warps = st.builds(
    drawn,
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    crop=st.integers(1, 12),
)


def by_hand(table, warp, fill):
    return reference.cut(reference.padded(table, warp.crop, fill), warp.crop, warp.top, warp.left, warp.mirror)


RESIZE = ("aligned", "nearest")


def warped(labels, warp, resize):
    return torch.from_numpy(warp_labels(labels.numpy(), warp, resize))


@given(warps, st.sampled_from(RESIZE))
@settings(max_examples=150, deadline=None)
def test_labels_and_masks_are_those_of_the_slow_reference(warp, resize):
    height, width = warp.size
    # Every pixel has a label of its own, so that a wrong one cannot go unseen.
    labels = torch.arange(height * width).view(height, width)
    whole = reference.enlarged_labels(labels.tolist(), *warp.enlarged, resize)
    expected = torch.tensor(by_hand(whole, warp, EMPTY))
    mask = inside(warp)
    assert torch.equal(mask, expected != EMPTY)
    assert torch.equal(warped(labels, warp, resize)[mask], expected[mask])


@given(warps)
@settings(max_examples=80, deadline=None)
def test_images_are_those_of_the_slow_reference(warp):
    image = torch.randint(0, 256, (3, *warp.size), generator=generator(1), dtype=torch.uint8)
    crop = warp_image(image, warp, FILL)
    assert crop.dtype == torch.float32
    for channel in range(3):
        whole = reference.enlarged_image(image[channel].tolist(), *warp.enlarged)
        expected = torch.tensor(by_hand(whole, warp, float(FILL[channel])))
        assert torch.allclose(crop[channel], expected, atol=1e-3)


@pytest.mark.parametrize("scale", [0.51, 1.0, 1.37])
def test_whole_images_are_enlarged_as_torch_does(scale):
    image = torch.randint(0, 256, (3, 24, 24), generator=generator(), dtype=torch.uint8)
    side = int(24 * scale)
    warp = Warp(size=(24, 24), enlarged=(side, side), crop=side, top=0, left=0, mirror=False)
    whole = F.interpolate(image[None].float(), (side, side), mode="bilinear")[0]
    assert torch.allclose(warp_image(image, warp, FILL), whole, atol=1e-3)
    for resize, mode in (("nearest", "nearest"), ("aligned", "nearest-exact")):
        nearest = F.interpolate(image[None].float(), (side, side), mode=mode)[0]
        assert torch.equal(warped(image, warp, resize).float(), nearest)


def test_nothing_to_do_changes_nothing():
    image = torch.randint(0, 256, (3, 7, 7), generator=generator(), dtype=torch.uint8)
    warp = Warp(size=(7, 7), enlarged=(7, 7), crop=7, top=0, left=0, mirror=False)
    assert torch.equal(warp_image(image, warp, FILL), image.float())
    assert all(torch.equal(warped(image, warp, resize), image) for resize in RESIZE)


def test_a_mirrored_row_by_hand():
    # Four pixels, padded to six: one on either side, then turned around.
    warp = Warp(size=(1, 4), enlarged=(1, 4), crop=6, top=0, left=0, mirror=True)
    row = torch.tensor([[1, 2, 3, 4]])
    assert inside(warp).nonzero().tolist() == [[2, 1], [2, 2], [2, 3], [2, 4]]
    assert warped(row, warp, "aligned")[2, 1:5].tolist() == [4, 3, 2, 1]
    image = warp_image(row[None].expand(3, 1, 4), warp, FILL)
    assert image[1, 2].tolist() == [20, 4, 3, 2, 1, 20]


def test_leading_dimensions_and_types_are_kept():
    warp = drawn(3, (9, 11), 5)
    for shape, kind in (((9, 11), torch.int64), ((1, 9, 11), torch.float32), ((3, 9, 11), torch.float32)):
        crop = warped(torch.zeros(shape, dtype=kind), warp, "aligned")
        assert crop.shape == (*shape[:-2], 5, 5)
        assert crop.dtype == kind


@given(warps)
def test_a_draw_is_a_function_of_its_generator_and_fits(warp):
    height, width = warp.enlarged
    assert 0 <= warp.top <= max(height - warp.crop, 0)
    assert 0 <= warp.left <= max(width - warp.crop, 0)
    assert max(int(0.5 * warp.size[0]), 1) <= height <= 1.5 * warp.size[0]
    assert warp.scale == height / warp.size[0]


def test_same_generator_same_draw():
    assert drawn(5, (480, 640), 321) == drawn(5, (480, 640), 321)
    assert drawn(5, (480, 640), 321) != drawn(6, (480, 640), 321)


def test_draws_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    drawn(5, (480, 640), 321)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_cover_their_ranges():
    warps = [drawn(seed, (100, 100), 120) for seed in range(2000)]
    scales = torch.tensor([warp.scale for warp in warps])
    assert 0.5 <= scales.min() < 0.51
    assert 1.48 < scales.max() < 1.5
    assert abs(scales.mean() - 1) < 0.02
    assert abs(sum(warp.mirror for warp in warps) / 2000 - 0.5) < 0.04
    places = {warp.top for warp in warps if warp.enlarged == (125, 125)}
    assert places == set(range(6))
    assert {warp.left for warp in warps if warp.enlarged[1] <= 120} == {0}


@pytest.mark.parametrize(("probability", "mirrored"), [(0.0, False), (1.0, True)])
def test_mirroring_can_be_switched_off_and_forced(probability, mirrored):
    for seed in range(50):
        warp = draw_warp(generator(seed), (8, 8), 4, (1.0, 1.0), probability)
        assert warp.mirror == mirrored
        assert math.isclose(warp.scale, 1.0)
