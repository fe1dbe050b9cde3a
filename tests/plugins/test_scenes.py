"""The generated scenes: geometry against a slow ray caster, labels against their formulas, the cache on disk."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import feature, filters

from mtlprune_bench import STANDARD, DataError, DataRequest, Labels
from mtlprune_bench.plugins.datasets import scenes
from mtlprune_bench.plugins.datasets.scenes import cache, kinds, labels, render, world

PLAN = cache.Plan(height=24, width=32, train=5, validation=2, test=3)
TASKS = ("segmentation", "normals", "depth", "keypoints", "edges")
DEFAULT = (
    Labels("segmentation", classes=40),
    Labels("normals"),
    Labels("depth", unit="m"),
    Labels("keypoints"),
    Labels("edges"),
)


def reference(name):
    """Import a file of tests/references."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "references" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def request(folder, wanted=DEFAULT):
    return DataRequest(labels=wanted, protocol=STANDARD, root=None, cache=folder)


def rendered(index, height=96, width=128):
    rng = np.random.default_rng(index)
    scene = world.draw_scene(rng)
    return scene, render.render(scene, height, width, rng)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A cache in which the scenes of PLAN have been made."""
    path = tmp_path_factory.mktemp("cache")
    scenes.open_scenes(request(path), PLAN)
    return path


@pytest.fixture(scope="module")
def many():
    """A few hundred small scenes."""
    return [rendered(index, 24, 32)[1] for index in range(300)]


def test_a_scene_is_a_function_of_seed_and_index():
    first, again, other_index, other_seed = (
        cache.make_scene(seed, index, 24, 32) for seed, index in ((0, 7), (0, 7), (0, 8), (1, 7))
    )
    for name in cache.ARRAYS:
        assert first[name].tobytes() == again[name].tobytes()
    assert first["image"].tobytes() != other_index["image"].tobytes()
    assert first["image"].tobytes() != other_seed["image"].tobytes()


def test_a_scene_does_not_depend_on_how_many_there_are(folder, tmp_path):
    few = scenes.open_scenes(request(folder), PLAN)
    more = scenes.open_scenes(request(tmp_path), replace(PLAN, train=7, validation=3, test=4))
    for split in ("train", "validation", "test"):
        for index in range(len(getattr(few, split))):
            one, other = getattr(few, split)[index], getattr(more, split)[index]
            assert torch.equal(one.image, other.image)
            assert all(torch.equal(one.targets[task], other.targets[task]) for task in TASKS)


def test_no_scene_is_in_two_splits():
    indices = cache.Plan().indices()
    assert len(indices) == len(set(indices)) == 240 + 40 + 80


def simple_scene():
    """A turned box and a ball in a room, seen by a tilted camera."""
    look = kinds.Look(np.ones(3), np.ones(3), "plain", 1.0, 0.0)
    room = world.Room(np.array([0.1, -1.3, 3.0]), np.array([2.0, 1.3, 3.0]), (look, look, look))
    turn = world.upright(0.6)
    box = world.Solid("box", np.array([0.6, -0.4, 3.0]), turn * np.array([0.5, 0.4, 0.3]), look, 3)
    ball = world.Solid("sphere", np.array([-0.5, -0.5, 2.5]), turn * 0.5, look, 4)
    camera = world.look_at(np.array([0.2, -1.5, 0.4]), yaw=0.2, pitch=0.25, roll=0.04)
    return world.Scene(room, (box, ball), camera, exposure=1.0)


def test_hits_agree_with_a_slow_ray_caster():
    slow, scene = reference("raycast"), simple_scene()
    room, (box, ball), camera = scene.room, scene.solids, scene.camera
    rays = render.pixel_rays(24, 32)
    hits = render.cast(scene, rays)

    def seen(point):
        return list(camera.rotation @ (point - camera.position))

    def box_arguments(centre, axes, halves):
        return seen(centre), [list(camera.rotation @ axes[:, k]) for k in range(3)], list(halves)

    inside = box_arguments(room.centre, np.eye(3), room.half)
    outside = box_arguments(box.centre, world.upright(0.6), (0.5, 0.4, 0.3))
    for number, ray in enumerate(rays):
        candidates = [
            *slow.box_hits(ray, *inside),
            *slow.box_hits(ray, *outside),
            *slow.sphere_hits(ray, seen(ball.centre), 0.5),
        ]
        depth, normal = slow.first_hit(ray, iter(candidates))
        assert hits.depth[number] == pytest.approx(depth, abs=1e-4)
        assert hits.normals[number] == pytest.approx(normal, abs=1e-4)
    assert set(hits.surface) == {0, 1, 3, 4}


def test_a_cylinder_has_a_round_side_and_a_flat_lid():
    look = kinds.Look(np.ones(3), np.ones(3), "plain", 1.0, 0.0)
    drum = world.Solid("cylinder", np.array([0.0, 0.0, 4.0]), np.diag([1.0, 0.5, 1.0]), look, 3)
    room = world.Room(np.zeros(3), np.full(3, 10.0), (look, look, look))
    level = world.Scene(room, (drum,), world.look_at(np.zeros(3), 0, 0, 0), 1.0)
    hits = render.cast(level, np.array([[0.0, 0.0, 1.0], [0.0, 0.2, 1.0]]))
    assert hits.depth == pytest.approx([3.0, 10.0])
    assert hits.normals[0] == pytest.approx([0.0, 0.0, -1.0])
    above = replace(level, camera=world.look_at(np.array([0.0, -4.0, 0.0]), 0, math.atan2(3.5, 4.0), 0))
    hits = render.cast(above, np.array([[0.0, 0.0, 1.0]]))
    assert hits.depth == pytest.approx([math.hypot(3.5, 4.0)])
    assert hits.normals[0] @ above.camera.rotation == pytest.approx([0.0, -1.0, 0.0])


@pytest.mark.parametrize("index", range(4))
def test_normals_are_unit_vectors_that_face_the_camera(index):
    _, picture = rendered(index)
    normals, valid = picture.normals.reshape(-1, 3), (picture.depth > 0).ravel()
    assert np.linalg.norm(normals[valid], axis=1) == pytest.approx(np.ones(valid.sum()), abs=1e-5)
    assert (normals[~valid] == 0).all()
    assert (np.einsum("nk,nk->n", normals, render.pixel_rays(96, 128))[valid] < 0).all()


def test_depth_differentiates_to_the_normals_on_planes():
    _, picture = rendered(3)
    points = render.pixel_rays(96, 128).reshape(96, 128, 3) * picture.depth[..., None].astype(np.float64)
    across = points[:-1, 1:] - points[:-1, :-1]
    down = points[1:, :-1] - points[:-1, :-1]
    derived = np.cross(down, across)
    derived /= np.linalg.norm(derived, axis=2, keepdims=True)
    corner = picture.normals[:-1, :-1]
    flat = (picture.labels < kinds.STRUCTURE)[:-1, :-1]
    for neighbour in (picture.normals[1:, :-1], picture.normals[:-1, 1:]):
        flat &= (neighbour == corner).all(axis=2)
    for neighbour in (picture.labels[1:, :-1], picture.labels[:-1, 1:]):
        flat &= neighbour == picture.labels[:-1, :-1]
    assert flat.mean() > 0.4
    assert np.abs(derived - corner)[flat].max() < 2e-3


def test_every_class_occurs_and_a_few_pixels_are_invalid(many):
    seen = np.stack([picture.labels for picture in many])
    counts = np.bincount(seen.ravel(), minlength=256)
    assert (counts[: kinds.CLASSES] > 0).all()
    assert counts[kinds.CLASSES : kinds.VOID].sum() == 0
    assert 0.001 < counts[kinds.VOID] / seen.size < 0.03
    assert 0.001 < np.mean([(picture.depth == 0).mean() for picture in many]) < 0.03
    per_scene = np.array([(seen == label).any(axis=(1, 2)).sum() for label in range(3, kinds.CLASSES)])
    assert per_scene.max() < 20 * per_scene.min()


@pytest.mark.parametrize("classes", [4, 13, 17, 19, 39, 40])
def test_fewer_classes_merge_neighbouring_kinds(classes):
    table = labels.class_table(classes)
    assert list(table[:3]) == [0, 1, 2]
    assert set(table[:40]) == set(range(classes))
    assert (np.diff(table[:40]) >= 0).all()
    assert (table[40:] == 255).all()


def test_depth_units_follow_their_formulas():
    metres = np.array([0.8, 1.0, 8.0], dtype=np.float32)
    assert labels.as_metres(metres) is metres
    expected = [(256 * 60 / z + 1) / 65535 for z in (0.8, 1.0, 8.0)]
    assert labels.as_disparity(metres) == pytest.approx(expected, rel=1e-5)
    assert expected[2] == pytest.approx(0.0293, abs=1e-4)
    expected = [math.log(1 + 512 * z) / math.log(65536) for z in (0.8, 1.0, 8.0)]
    assert labels.as_log_code(metres) == pytest.approx(expected, rel=1e-5)
    assert {labels.DEPTH_UNITS[unit](metres).dtype for unit in labels.DEPTH_UNITS} == {np.dtype("float32")}


def test_keypoints_and_edges_are_the_formulas_of_the_stored_image(folder):
    sample = scenes.open_scenes(request(folder), PLAN).train[1]
    red, green, blue = sample.image.numpy().astype(np.int64)
    grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16) / 255
    determinants = [feature.hessian_matrix_det(grey, 1 + 29 * k / 9) for k in range(10)]
    stored = np.maximum(np.maximum.reduce(determinants), 0) * 65535
    keypoints = 2 * np.clip(stored / 65536, 0, 0.005) / 0.005 - 1
    assert sample.targets["keypoints"][0].numpy() == pytest.approx(keypoints, abs=1e-6)
    inside = filters.gaussian(np.ones_like(grey), 3, mode="constant")
    stored = filters.sobel(filters.gaussian(grey, 3, mode="constant") / inside) * 65535
    edges = 2 * np.clip(stored / 65536, 0, 0.08) / 0.08 - 1
    assert sample.targets["edges"][0].numpy() == pytest.approx(edges, abs=1e-6)


def test_samples_are_canonical(folder):
    splits = scenes.open_scenes(request(folder), PLAN)
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [5, 2, 3]
    assert (splits.origin, splits.fingerprint) == (
        "generated scenes v1 (seed 0)",
        "scenes-v1-24x32-5+2+3-seed0",
    )
    sample = splits.test[2]
    assert (sample.image.shape, sample.image.dtype) == ((3, 24, 32), torch.uint8)
    channels = {"normals": (3,), "depth": (1,), "keypoints": (1,), "edges": (1,), "segmentation": ()}
    for task in TASKS:
        assert sample.targets[task].shape == (*channels[task], 24, 32)
        assert sample.targets[task].dtype == (torch.int64 if task == "segmentation" else torch.float32)
        assert (sample.masks[task].shape, sample.masks[task].dtype) == ((24, 32), torch.bool)
    assert torch.equal(sample.masks["normals"], sample.masks["depth"])
    sample.image.zero_()
    assert splits.test[2].image.any(), "a sample must be a copy"
    with pytest.raises(IndexError):
        splits.test[3]


def test_masks_mark_what_has_no_class_or_no_geometry(many):
    void = next(picture for picture in many if (picture.labels == kinds.VOID).any())
    target, mask = scenes.READERS["segmentation"](void.labels, Labels("segmentation", classes=13))
    assert ((target == 255) == ~mask).all()
    assert target[mask].max() < 13
    window = next(picture for picture in many if (picture.depth == 0).any())
    for unit in labels.DEPTH_UNITS:
        target, mask = scenes.READERS["depth"](window.depth[None], Labels("depth", unit=unit))
        assert (mask == (window.labels != kinds.STRUCTURE + kinds.WINDOW)).all()
        assert np.isfinite(target).all()
        assert ((target[0] > 0) == mask).all()


def test_mean_and_deviation_are_of_the_training_images(folder):
    splits = scenes.open_scenes(request(folder), PLAN)
    pixels = torch.stack([splits.train[index].image for index in range(5)]).double() / 255
    assert splits.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=1e-5)
    assert splits.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-5)


def test_only_the_labels_asked_for_are_given(folder):
    wanted = (Labels("depth", unit="log code"), Labels("segmentation", classes=17))
    sample = scenes.open_scenes(request(folder, wanted), PLAN).train[0]
    assert set(sample.targets) == set(sample.masks) == {"depth", "segmentation"}
    metres = scenes.open_scenes(request(folder), PLAN).train[0].targets["depth"]
    expected = torch.log(1 + 512 * metres.double()) / math.log(65536)
    assert torch.allclose(sample.targets["depth"].double(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Labels("depth", unit="feet"), "no depth in 'feet'; they have m, disparity/65535, log code"),
        (Labels("segmentation", classes=41), "4 to 40 classes, not 41"),
        (Labels("segmentation", classes=3), "4 to 40 classes, not 3"),
        (Labels("flow"), "no labels for 'flow'; they have segmentation, normals"),
    ],
)
def test_labels_that_scenes_do_not_have_are_refused(tmp_path, wanted, message):
    with pytest.raises(DataError, match=message):
        scenes.open_scenes(request(tmp_path, (wanted,)), PLAN)
    assert not any(tmp_path.iterdir())


def flip_a_byte(folder):
    path = folder / "depth.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def change_a_shape(folder):
    path = folder / cache.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["arrays"]["image"]["shape"] = [1]
    path.write_text(json.dumps(manifest))


DAMAGES = {
    "a flipped byte": flip_a_byte,
    "a missing array": lambda folder: (folder / "edges.npy").unlink(),
    "a missing manifest": lambda folder: (folder / cache.MANIFEST).unlink(),
    "a cut manifest": lambda folder: (folder / cache.MANIFEST).write_text('{"version": 1'),
    "a manifest of something else": lambda folder: (folder / cache.MANIFEST).write_text("[]"),
    "another shape": change_a_shape,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_moved_aside_and_made_again(tmp_path, damage):
    plan = replace(PLAN, train=1, validation=1, test=1)
    before = scenes.open_scenes(request(tmp_path), plan)
    DAMAGES[damage](tmp_path / plan.name)
    with pytest.warns(RuntimeWarning, match=f"{re.escape(plan.name)}.*is made again"):
        after = scenes.open_scenes(request(tmp_path), plan)
    assert torch.equal(before.train[0].image, after.train[0].image)
    assert (tmp_path / f"{plan.name}.damaged-1").is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scenes.open_scenes(request(tmp_path), plan)


def test_scenes_are_made_once_and_nothing_is_left_behind(folder, monkeypatch):
    monkeypatch.setattr(cache, "make", lambda *_: pytest.fail("made again"))
    scenes.open_scenes(request(folder), PLAN)
    assert {path.suffix for path in folder.iterdir()} <= {"", ".lock", ".owner"}
    assert not list(folder.glob(".*.part"))


def test_a_process_that_dies_while_making_them_leaves_no_folder(tmp_path, monkeypatch):
    plan = replace(PLAN, train=1, validation=1, test=1)
    make_scene = cache.make_scene
    monkeypatch.setattr(cache, "make_scene", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        scenes.open_scenes(request(tmp_path), plan)
    assert not (tmp_path / plan.name).exists()
    monkeypatch.setattr(cache, "make_scene", make_scene)
    (tmp_path / f".{plan.name}.part").mkdir()
    assert len(scenes.open_scenes(request(tmp_path), plan).train) == 1


def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="Cannot write in") as caught:
        scenes.open_scenes(request(tmp_path / "file"), PLAN)
    assert type(caught.value).__name__ == "StoreError"


def test_the_dataset_is_registered_with_all_its_labels():
    found = []
    scenes.register_datasets(found.append)
    (dataset,) = found
    assert dataset.name == "scenes"
    assert dataset.generate is scenes.draw_scenes
    assert tuple(entry.task for entry in dataset.labels) == TASKS == tuple(dataset.loss_weights)
    assert (dataset.finetune.steps, dataset.finetune.lr) == (100, 1e-4)
