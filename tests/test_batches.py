"""Batches: pure functions of the seed and the step, with the protocol's targets and input."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch

from mtlprune_bench import DISPARSE, STANDARD, DataError, Labels, Recipe, Sample, Splits, Task
from mtlprune_bench.seeds import derive
from mtlprune_bench.tasks import Objective
from mtlprune_bench.training.augment import draw_warp, inside, warp_image, warp_labels
from mtlprune_bench.training.batches import Stream, evaluation_batches

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.125)
RECIPE = Recipe(steps=10, batch=4, crop=9)


@dataclass(frozen=True)
class Fakes:
    """Samples of random pixels whose targets say where they come from; sample `bad` has damaged files."""

    sizes: tuple[tuple[int, int], ...]
    bad: int | None = None

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        if index == self.bad:
            raise DataError(f"img/{index}.png is damaged.")
        height, width = self.sizes[index]
        random = torch.Generator().manual_seed(index)
        where = (torch.arange(height * width) + 1000 * index).view(height, width)
        return Sample.of(
            image=torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8),
            targets={
                "vector": torch.rand(3, height, width, generator=random) + 1,
                "distance": torch.rand(1, height, width, generator=random) + 1,
                "class": where,
                "unasked": where,
            },
            masks={
                name: torch.rand(height, width, generator=random) > 0.2
                for name in ("vector", "distance", "class", "unasked")
            },
        )


def mirror_x(target):
    return torch.cat([-target[..., :1, :, :], target[..., 1:, :, :]], dim=-3)


def nearer(target, scale, labels):
    assert labels.unit == "m"
    return target / scale


TASKS = {
    "vector": Task(name="vector", description="", loss=None, mirror=mirror_x),
    "distance": Task(name="distance", description="", loss=None, rescale=nearer),
    "class": Task(name="class", description="", loss=None),
}


def objective(protocol=STANDARD, tasks=("vector", "distance", "class")):
    return Objective(
        tasks={name: TASKS[name] for name in tasks},
        labels={name: Labels(name, unit="m") for name in tasks},
        weights=dict.fromkeys(tasks, 1.0),
        protocol=protocol,
    )


def splits(samples):
    return Splits(
        train=samples,
        validation=samples,
        test=samples,
        origin="fakes",
        fingerprint="fakes",
        mean=MEAN,
        std=STD,
    )


def stream(sizes=((12, 10),) * 7, protocol=STANDARD, recipe=RECIPE, seed=1, workers=0, bad=None):
    return Stream(splits(Fakes(tuple(sizes), bad)), objective(protocol), recipe, seed, workers)


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(one, other):
    assert torch.equal(one.images, other.images)
    for mine, theirs in ((one.targets, other.targets), (one.masks, other.masks)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_batch_has_the_objectives_tasks_and_types():
    batch = stream()[0]
    assert batch.images.shape == (4, 3, 9, 9)
    assert batch.images.dtype == torch.float32
    assert {name: (target.shape, target.dtype) for name, target in batch.targets.items()} == {
        "vector": ((4, 3, 9, 9), torch.float32),
        "distance": ((4, 1, 9, 9), torch.float32),
        "class": ((4, 9, 9), torch.int64),
    }
    assert all(mask.shape == (4, 9, 9) and mask.dtype == torch.bool for mask in batch.masks.values())


def test_same_seed_same_batches_from_any_start():
    first = take(stream().start(0), 6)
    for step in range(6):
        assert_same(stream()[step], first[step])
        assert_same(next(stream().start(step)), first[step])
    other = stream(seed=2)[0]
    assert not torch.equal(other.images, first[0].images)
    assert not torch.equal(first[1].images, first[0].images)


@pytest.mark.parametrize("sizes", [((12, 10),) * 7, ((12, 10), (20, 8), (5, 5), (9, 30))])
def test_workers_change_nothing(sizes):
    alone = take(stream(sizes).start(3), 5)
    for workers in (1, 2):
        for one, other in zip(take(stream(sizes, workers=workers).start(3), 5), alone, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(workers):
    before = torch.get_rng_state()
    take(stream(workers=workers).start(0), 2)
    assert torch.equal(torch.get_rng_state(), before)


UNCHANGED = replace(RECIPE, batch=3, crop=4, scale_low=1.0, scale_high=1.0, mirror=0.0)


def which(batch):
    """Return the index of each sample in a batch, read off its labels."""
    return (batch.targets["class"][:, 0, 0] // 1000).tolist()


def test_each_epoch_shows_every_sample_once_in_an_order_of_its_own():
    seen = [
        index for batch in take(stream(((4, 4),) * 7, recipe=UNCHANGED).start(0), 28) for index in which(batch)
    ]
    epochs = [seen[first : first + 7] for first in range(0, 84, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12


def test_two_samples_fill_a_batch_of_sixteen():
    batch = stream(((4, 4),) * 2, recipe=replace(UNCHANGED, batch=16))[3]
    assert len(batch.images) == 16
    assert [sorted(which(batch)[first : first + 2]) for first in range(0, 16, 2)] == [[0, 1]] * 8


def test_a_sample_is_warped_differently_each_time():
    batch = stream(((30, 30),), recipe=replace(RECIPE, batch=8))[0]
    assert len({tuple(image.flatten().tolist()) for image in batch.images}) == 8


def warps_of(stream, step):
    """Return the warps of a batch of one-sized samples, drawn as the stream draws them."""
    recipe, size = stream.recipe, stream.splits.train.sizes[0]
    for position in range(step * recipe.batch, (step + 1) * recipe.batch):
        generator = torch.Generator().manual_seed(derive(stream.seed, "augment", position))
        yield draw_warp(generator, size, recipe.crop, (recipe.scale_low, recipe.scale_high), recipe.mirror)


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE])
def test_targets_are_mirrored_and_rescaled_under_standard_alone(protocol):
    source = stream(((12, 10),), protocol, replace(RECIPE, batch=24))
    sample, batch = source.splits.train[0], source[0]
    warps = list(warps_of(source, 0))
    assert {warp.mirror for warp in warps} == {True, False}
    for place, warp in enumerate(warps):

        def warped(target, warp=warp):
            return torch.from_numpy(warp_labels(target.numpy(), warp, protocol.resize))

        for name in TASKS:
            assert torch.equal(batch.masks[name][place], warped(sample.masks[name]) & inside(warp))
        assert torch.equal(batch.targets["class"][place], warped(sample.targets["class"]))
        vector = warped(sample.targets["vector"])
        if warp.mirror and protocol is STANDARD:
            vector[0] = -vector[0]
        assert torch.equal(batch.targets["vector"][place], vector)
        scale = warp.scale if protocol is STANDARD else 1
        distance = warped(sample.targets["distance"])
        assert torch.allclose(batch.targets["distance"][place], distance / scale)


def test_padding_is_masked_and_is_the_mean_or_black():
    recipe = replace(RECIPE, scale_low=1.0, scale_high=1.0, batch=2)
    for protocol, expected in ((STANDARD, (0.0, 0.0, 0.0)), (DISPARSE, (-0.3 * 255, -0.4 * 255, -0.5 * 255))):
        batch = stream(((5, 5),) * 2, protocol, recipe)[0]
        outside = torch.ones(9, 9, dtype=torch.bool)
        outside[2:7, 2:7] = False
        for mask in batch.masks.values():
            assert not mask[:, outside].any()
            assert mask[:, ~outside].any()
        border = batch.images[:, :, outside]
        assert torch.allclose(border, torch.tensor(expected)[:, None].expand(2, 3, 56), atol=1e-5)


def test_network_input_by_hand():
    image = Fakes(((3, 4),))[0].image
    rgb, bgr = (
        next(evaluation_batches(Fakes(((3, 4),)), splits(None), objective(protocol), 1)).images[0]
        for protocol in (STANDARD, DISPARSE)
    )
    for channel in range(3):
        value = image[channel].float()
        assert torch.allclose(rgb[channel], (value / 255 - MEAN[channel]) / STD[channel], atol=1e-5)
        assert torch.allclose(bgr[2 - channel], value - 255 * MEAN[channel], atol=1e-4)


@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE])
def test_training_input_is_the_warped_image_normalised_as_in_evaluation(protocol):
    source = stream(((12, 12),), protocol, replace(UNCHANGED, batch=1, crop=12))
    whole = next(evaluation_batches(source.splits.train, source.splits, source.objective, 1))
    assert torch.allclose(source[0].images, whole.images, atol=1e-4)
    (warp,) = warps_of(source, 0)
    assert torch.equal(warp_image(source.splits.train[0].image, warp, torch.zeros(3)) % 1, torch.zeros(3, 12, 12))


def test_evaluation_is_in_order_and_stacks_consecutive_images_of_one_size():
    sizes = ((4, 4), (4, 4), (4, 4), (5, 4), (4, 4), (4, 5), (4, 5))
    samples = Fakes(sizes)
    batches = list(evaluation_batches(samples, splits(samples), objective(), 2))
    assert [which(batch) for batch in batches] == [[0, 1], [2], [3], [4], [5, 6]]
    assert [len(batch.images) for batch in batches] == [2, 1, 1, 1, 2]
    for batch in batches:
        assert batch.targets.keys() == batch.masks.keys() == TASKS.keys()
        for place, index in enumerate(which(batch)):
            for name in TASKS:
                assert torch.equal(batch.targets[name][place], samples[index].targets[name])
                assert torch.equal(batch.masks[name][place], samples[index].masks[name])


def test_evaluation_of_a_split_without_samples_is_empty():
    assert list(evaluation_batches(Fakes(()), splits(None), objective(), 4)) == []


def test_only_the_objectives_tasks_are_read():
    samples = Fakes(((4, 4),))
    goal = objective(tasks=("class",))
    (batch,) = evaluation_batches(samples, splits(samples), goal, 4)
    assert set(batch.targets) == set(batch.masks) == {"class"}
    assert set(Stream(splits(samples), goal, RECIPE, 0)[0].targets) == {"class"}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_in_one_line(workers, capfd):
    with pytest.raises(DataError) as caught:
        take(stream(workers=workers, bad=5).start(0), 4)
    assert str(caught.value) == "img/5.png is damaged."
    with pytest.raises(DataError, match=r"^img/5\.png is damaged\.$"):
        list(evaluation_batches(Fakes(((4, 4),) * 7, bad=5), splits(None), objective(), 4))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_to_train_on_is_said(workers):
    with pytest.raises(DataError, match="nothing to train on: fakes"):
        next(stream((), workers=workers).start(0))


def test_a_stream_left_half_way_takes_its_workers_along(capfd):
    batches = stream(workers=2).start(0)
    next(batches)
    del batches
    assert torch.multiprocessing.active_children() == []
    assert capfd.readouterr() == ("", "")


def test_more_workers_than_processors_are_no_matter():
    assert_same(next(stream(workers=64).start(2)), stream()[2])


def test_evaluation_images_may_be_on_a_device_already():
    samples = Fakes(((4, 4),))
    plain, there = (
        next(evaluation_batches(samples, splits(samples), objective(), 1, device))
        for device in (None, torch.device("cpu"))
    )
    assert_same(plain, there)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("protocol", [STANDARD, DISPARSE], ids=lambda protocol: protocol.name)
def test_a_gpu_normalises_images_to_the_same_bits(protocol):
    samples = Fakes(((40, 60),))
    plain, there = (
        next(evaluation_batches(samples, splits(samples), objective(protocol), 1, device)).images.cpu()
        for device in (None, torch.device("cuda"))
    )
    assert torch.equal(plain, there)
