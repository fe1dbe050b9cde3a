"""Indexes: whatever lists the files of a dataset names files in its folder, or is refused with one line."""

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st
from inputs import ODD, TREES, fuzz, mutated, sizes

from mtlprune_bench.data.indexes import check_index, read_index
from mtlprune_bench.data.shards import MANIFEST, Damaged, read_manifest
from mtlprune_bench.errors import DataError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.plugins.datasets.cityscapes.official import read_camera
from mtlprune_bench.plugins.datasets.scenes.cache import Damaged as DamagedScenes
from mtlprune_bench.plugins.datasets.scenes.cache import Plan, load, read

COLUMNS = ("image", "", "colour")
KEYS = {"train": "train", "test": "test"}
PATHS = st.sampled_from(
    ["a.png", "../a.png", "/etc/passwd", "x/../../a", "link/a.png", "a\0", "", ".", "..", "é" * 300]
)
ROWS = st.lists(st.lists(PATHS | st.text(max_size=10) | ODD, min_size=2, max_size=4), max_size=3)
INDEXES = TREES | st.fixed_dictionaries({}, optional={"train": ROWS | TREES, "test": ROWS | TREES, "": TREES})
SHARDS = json.dumps(
    {
        **{
            "format": "mtlprune-bench shards",
            "version": 1,
            "dataset": "toy",
            "layout": "toy",
            "fingerprint": "ab",
        },
        "images": {"train": ["a", "b"], "validation": [], "test": ["c"]},
        "columns": {
            "image": {
                "forms": [{"shape": [3, 4, 4], "source": "uint8"}],
                **{"rows": 2, "note": "", "checksums": {"image-0-00000.npy": "00"}},
            }
        },
    }
).encode()


def as_json(value):
    return json.dumps(value).encode("utf-8", "surrogatepass")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link").symlink_to("/etc")
    return tmp_path / "inner"


@sizes(5_000)
def test_indexes(count, folder, tmp_path, capsys):
    path = folder / "index.json"
    sound = as_json({"train": [["a.png", "b.png", "c.png"]], "test": []})

    def target(data):
        path.write_bytes(data)
        index = read_index(path, COLUMNS, ("colour",), KEYS)
        for entries in index.splits().values():
            for entry in entries:
                for places in entry.values():
                    assert all(place.path.resolve().is_relative_to(folder.resolve()) for place in places)

    strategy = INDEXES.map(as_json) | mutated(sound) | st.binary()
    fuzz(target, strategy, count, tmp_path, capsys, DataError)


@sizes(2_000)
@pytest.mark.parametrize("name", ["nyuv2-3task", "cityscapes", "taskonomy"])
def test_indexes_of_every_layout(name, count, folder, tmp_path, capsys):
    """Each layout reads a folder in which its signs are files of anything."""
    layouts = [layout for layout in load_registry().get("datasets", name).files.layouts if own(layout)]
    assert layouts
    for number, layout in enumerate(layouts):
        root = folder / str(number)
        for sign in (*layout.signs, *own(layout)):
            (root / sign).parent.mkdir(parents=True, exist_ok=True)

        def target(data, layout=layout, root=root):
            for sign in own(layout):
                (root / sign).write_bytes(data)
            check_index(root, layout.index(root, tuple(layout.columns)))

        strategy = INDEXES.map(as_json) | st.binary()
        fuzz(target, strategy, count, tmp_path, capsys, DataError)


def own(layout):
    """Return the files of a layout that say what else there is."""
    return [sign for sign in (*layout.signs, *layout.hints) if Path(sign).suffix in (".json", ".mat")]


@sizes(5_000)
def test_manifests_of_prepared_images(count, tmp_path, capsys):
    (tmp_path / "image-0-00000.npy").touch()

    def target(data):
        (tmp_path / MANIFEST).write_bytes(data)
        manifest = read_manifest(tmp_path)
        assert manifest is None or isinstance(manifest.rows(), dict)

    names = st.sampled_from(["images", "columns", "version", "format", "dataset"])
    changed = st.dictionaries(names, TREES, max_size=2).map(lambda some: as_json(json.loads(SHARDS) | some))
    fuzz(target, mutated(SHARDS) | changed | st.binary(), count, tmp_path, capsys, (DataError, Damaged))


@sizes(3_000)
def test_manifests_of_scenes(count, tmp_path, capsys):
    plan = Plan(height=8, width=8, train=1, validation=1, test=1)
    load(plan, tmp_path)
    path = tmp_path / plan.name / MANIFEST
    sound = path.read_bytes()

    def target(data):
        path.write_bytes(data)
        read(plan, path.parent)

    names = st.sampled_from(["plan", "arrays", "version", "mean", "std"])
    changed = st.dictionaries(names, TREES, max_size=2).map(lambda some: as_json(json.loads(sound) | some))
    fuzz(target, mutated(sound) | changed | TREES.map(as_json), count, tmp_path, capsys, DamagedScenes)


@sizes(3_000)
def test_cameras(count, tmp_path, capsys):
    path = tmp_path / "camera.json"

    def target(data):
        path.write_bytes(data)
        assert read_camera(path) > 0

    parts = st.fixed_dictionaries({}, optional={"extrinsic": CAMERA | TREES, "intrinsic": CAMERA | TREES})
    fuzz(target, parts.map(as_json) | st.binary(), count, tmp_path, capsys, DataError)


CAMERA = st.fixed_dictionaries({}, optional={"baseline": ODD, "fx": ODD})
