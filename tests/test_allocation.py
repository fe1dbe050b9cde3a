"""Allocations: counts sum to what is kept; ERK against its definition and against published densities."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from references import pruning as reference

from mtlprune_bench import Erk, Global, Uniform, UsageError
from mtlprune_bench.pruning.allocation import erk_densities

shape = st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple)
networks = st.lists(shape, min_size=1, max_size=6)


def named(shapes):
    return {f"layer{i}": shape for i, shape in enumerate(shapes)}


@pytest.mark.parametrize("allocation", [Global(), Uniform(), Erk(), Erk(0.9)])
@given(networks, st.floats(0, 1))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_counts_sum_to_what_is_kept_and_fit_the_layers(allocation, shapes, density):
    sizes = {name: math.prod(shape) for name, shape in named(shapes).items()}
    kept = round(density * sum(sizes.values()))
    groups = allocation.groups(named(shapes), kept)
    assert sum(group.kept for group in groups) == kept
    assert all(0 <= group.kept <= sum(sizes[name] for name in group.names) for group in groups)
    assert [name for group in groups for name in group.names] == list(sizes)


@given(networks, st.floats(0.05, 0.95), st.sampled_from([0.9, 1.0]))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_erk_is_its_definition(shapes, density, power):
    total = sum(math.prod(shape) for shape in shapes)
    kept = max(1, round(density * total))
    expected = [max(value, 0.0) for value in reference.erk(shapes, kept / total, power)]
    found = list(erk_densities(named(shapes), kept, power).values())
    assert found == pytest.approx(expected, abs=1e-9)


def deeplab_shapes():
    """Return the shapes of the DiSparse network for NYU-v2: ResNet-34 and two heads of four branches."""
    shapes = {"conv1": (64, 3, 7, 7)}
    width = 64
    for stage, (channels, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            shapes[f"{stage}.{block}.conv1"] = (channels, width, 3, 3)
            shapes[f"{stage}.{block}.conv2"] = (channels, channels, 3, 3)
            if width != channels:
                shapes[f"ds.{stage}"] = (channels, width, 1, 1)
            width = channels
    for task, outputs in (("seg", 40), ("sn", 3)):
        for branch in range(4):
            shapes[f"{task}.{branch}.conv1"] = (1024, 512, 3, 3)
            shapes[f"{task}.{branch}.conv2"] = (1024, 1024, 1, 1)
            shapes[f"{task}.{branch}.conv3"] = (outputs, 1024, 1, 1)
    return shapes


def test_erk_gives_the_densities_of_the_released_disparse_code():
    shapes = deeplab_shapes()
    total = sum(map(math.prod, shapes.values()))
    assert total == 67_581_120
    density = erk_densities(shapes, round(0.1 * total), 0.9)
    dense = [name for name, value in density.items() if value == 1]
    assert len(dense) == 11
    assert {"conv1", "ds.1", "ds.2"} < set(dense)
    assert density["3.0.conv1"] == pytest.approx(0.0994465, abs=5e-7)
    assert density["seg.0.conv1"] == pytest.approx(0.0531061, abs=5e-7)
    assert density["seg.0.conv2"] == pytest.approx(0.2656675, abs=5e-7)


@pytest.mark.parametrize(("sparsity", "dense"), [(0.9, 11), (0.7, 19), (0.5, 35), (0.3, 47)])
def test_erk_keeps_as_many_layers_whole_as_the_released_disparse_code(sparsity, dense):
    shapes = deeplab_shapes()
    kept = round((1 - sparsity) * sum(map(math.prod, shapes.values())))
    assert sum(value == 1 for value in erk_densities(shapes, kept, 0.9).values()) == dense


def test_more_weights_than_there_are_is_an_error():
    with pytest.raises(UsageError, match="cannot be shared out"):
        Uniform().groups({"a": (2, 2)}, 5)
