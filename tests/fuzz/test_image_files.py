"""Image files: PNG, NumPy, MATLAB, HDF5 and shards with any bytes are read, or refused with the path."""

import io

import h5py
import numpy as np
import pytest
from hypothesis import strategies as st
from inputs import fuzz, mutated, sizes
from PIL import Image
from scipy.io import savemat

from mtlprune_bench import read_npy, read_png
from mtlprune_bench.data.layouts import Place
from mtlprune_bench.data.shards import Form, damage, read_row
from mtlprune_bench.errors import DataError
from mtlprune_bench.plugins.datasets.nyuv2.official import count_images, whole_numbers

KEYS = {"images": "uint8", "labels": "uint16", "depths": "float32"}


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def mat():
    stream = io.BytesIO()
    savemat(stream, {"trainNdxs": np.arange(1, 5, dtype=np.uint16)[:, None], "other": np.array(["text"])})
    return stream.getvalue()


def hdf5():
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for key, kind in KEYS.items():
            file[key] = np.zeros((2, *((3,) if key == "images" else ()), 4, 5), dtype=kind)
    return stream.getvalue()


PNGS = [
    png(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)),
    png(np.arange(20, dtype=np.uint8).reshape(4, 5)),
    png(np.arange(20, dtype=np.uint16).reshape(4, 5)),
]
ARRAYS = [npy(np.ones((2, 3), dtype=kind)) for kind in ("f4", "f8", "u1", "i8")]
HEADERS = st.builds(
    lambda kind, shape, order: (
        b"\x93NUMPY\x01\x00v\x00"
        + repr({"descr": kind, "fortran_order": order, "shape": shape}).encode().ljust(117)
        + b"\n"
    ),
    st.sampled_from(["<f4", "|O", "<U9", "<f2", "V8", "<M8[s]", "", "(2,)<f4"]) | st.text(max_size=4),
    st.lists(st.integers(-2, 2**66), max_size=3).map(tuple),
    st.booleans(),
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def reading(path, read):
    """Return what writes bytes to `path` and lets `read` read them; what it refuses names the path."""

    def target(data):
        path.write_bytes(data)
        words = str(path)
        try:
            read(path)
        except DataError as error:
            words = str(error)
        assert str(path) in words

    return target


@sizes(8_000)
def test_png(count, path, tmp_path, capsys):
    def read(path):
        for mode in ("RGB", "L", "I;16"):
            try:
                assert read_png(path, mode).dtype == (np.uint16 if mode == "I;16" else np.uint8)
            except DataError:
                if mode == "I;16":
                    raise

    strategy = st.sampled_from(PNGS).flatmap(mutated) | st.binary()
    fuzz(reading(path, read), strategy, count, tmp_path, capsys)


@sizes(8_000)
def test_npy(count, path, tmp_path, capsys):
    def read(path):
        assert read_npy(path, 2, "f").ndim == 2

    strategy = st.sampled_from(ARRAYS).flatmap(mutated) | HEADERS | st.binary()
    fuzz(reading(path, read), strategy, count, tmp_path, capsys)


@sizes(6_000)
def test_shards(count, path, tmp_path, capsys):
    def target(data):
        path.unlink(missing_ok=True)  # a new file: the one before is mapped
        path.write_bytes(data)
        if not damage(path, Form((3,), "float64"), 2):
            assert np.load(path).shape == (2, 3)
        assert read_row(Place(path, 0)) is not None

    read_row.__globals__["mapped"].cache_clear()
    strategy = mutated(npy(np.ones((2, 3), dtype="f2"))) | HEADERS | st.binary()
    fuzz(target, strategy, count, tmp_path, capsys, DataError)


@sizes(5_000)
def test_mat(count, path, tmp_path, capsys):
    def read(path):
        assert whole_numbers(path, "trainNdxs", 9).max(initial=1) <= 9

    strategy = mutated(mat()) | st.binary()
    fuzz(reading(path, read), strategy, count, tmp_path, capsys)


@sizes(3_000)
def test_hdf5(count, path, tmp_path, capsys):
    strategy = mutated(hdf5()) | st.binary()
    fuzz(reading(path, lambda path: count_images(path, tuple(KEYS))), strategy, count, tmp_path, capsys)
