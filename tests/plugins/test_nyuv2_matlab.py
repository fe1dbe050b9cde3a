"""MATLAB's files: the numbers that SciPy wrote and reads, and a reason for whatever is not one."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import loadmat, savemat

from mtlprune_bench.plugins.datasets.nyuv2.matlab import read_numbers

TYPES = ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]


def written(content, **options):
    file = io.BytesIO()
    savemat(file, content, **options)
    return file.getvalue()


@settings(deadline=None, derandomize=True)
@given(
    st.sampled_from(TYPES).flatmap(lambda kind: arrays(kind, st.tuples(st.integers(0, 5), st.integers(0, 5)))),
    st.booleans(),
)
def test_numbers_are_those_that_scipy_reads(values, packed):
    data = written(
        {"before": "words", "wanted": values, "cells": np.array([[1, "a"]], object)}, do_compression=packed
    )
    assert read_numbers(data, "other") is None
    assert read_numbers(data, "before") is None
    assert read_numbers(data, "cells") is None
    found = read_numbers(data, "wanted")
    assert found.dtype == loadmat(io.BytesIO(data))["wanted"].dtype
    assert np.array_equal(
        found, loadmat(io.BytesIO(data))["wanted"].ravel("F"), equal_nan=values.dtype.kind == "f"
    )


def test_published_files_are_read(samples_folder):
    folder = samples_folder / "nyuv2_meta"
    for name, key in (("splits.mat", "trainNdxs"), ("splits.mat", "testNdxs"), ("classMapping40.mat", "mapClass")):
        found = read_numbers((folder / name).read_bytes(), key)
        assert np.array_equal(found, loadmat(folder / name)[key].ravel("F"))


def test_the_other_order_of_bytes_is_read():
    little = written({"wanted": np.array([[1.5, -2.0, 3.0]])})
    header = bytearray(little[:128])
    header[124:128] = b"\x01\x00MI"
    words = np.frombuffer(little[128:], "<u4").astype(">u4")
    body = bytearray(words.tobytes())
    name = little.index(b"wanted") - 128
    body[name : name + 8] = b"wanted\0\0"
    body[-24:] = np.array([1.5, -2.0, 3.0], ">f8").tobytes()
    assert read_numbers(bytes(header + body), "wanted").tolist() == [1.5, -2.0, 3.0]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_short_or_of_another_version_says_so(packed):
    data = written({"wanted": np.arange(40.0)}, do_compression=packed)
    for size in range(len(data) - 1):
        if size != 128:  # a file of nothing is whole
            with pytest.raises(ValueError, match=r"cut short|version 5|buffer|incomplete"):
                read_numbers(data[:size], "wanted")
    with pytest.raises(ValueError, match="version 5"):
        read_numbers(b"\0" * 200, "wanted")
