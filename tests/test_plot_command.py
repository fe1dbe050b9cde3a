"""`mtlbench plot`: every kind of figure of runs that were made, and clear words where there is nothing to draw."""

from pathlib import Path

import pytest
from PIL import Image

from mtlprune_bench.commands import run_cli

PLUGIN = ["--plugin", str(Path(__file__).parent / "toy_plugin.py")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store with a dense network, two methods of two seeds, and one of other labels."""
    folder = str(tmp_path_factory.mktemp("runs"))
    common = ["run", *PLUGIN, "--store", folder, "--no-tensorboard"]
    assert (
        run_cli([*common, "--dataset", "toy", "--method", "dense,snip,rigl", "--sparsity", "0.5", "--seeds", "2"])
        == 0
    )
    assert run_cli([*common, "--dataset", "toy-single", "--method", "snip", "--sparsity", "0.5"]) == 0
    return folder


@pytest.fixture
def plot(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(kind, *arguments):
        code = run_cli(["plot", kind, *arguments, "--store", store, *PLUGIN])
        return code, " ".join("".join(capsys.readouterr()).split())

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ("sparsity", "--metric", "delta", "--metric", "pixel_accuracy"),
        ("cost", "--cost", "steps"),
        ("curves",),
        ("components",),
        ("components", "--over-time", "--filter", "method=rigl"),
    ],
    ids=" ".join,
)
def test_every_kind_is_drawn(plot, arguments):
    code, text = plot(*arguments, "--filter", "dataset=toy", "--output", "figure.png")
    assert (code, text) == (0, "Wrote figure.png.")
    with Image.open("figure.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 20)
        assert min(picture.size) > 400
        assert len(colours) > 20


def test_each_setting_has_a_figure_of_its_own(plot):
    assert plot("sparsity") == (0, "Wrote sparsity-1.pdf. Wrote sparsity-2.pdf.")
    assert Path("sparsity-2.pdf").read_bytes().startswith(b"%PDF")


def test_predictions_of_several_runs_stand_side_by_side(plot):
    code, text = plot(
        "predictions", "dense-toy-0-s0", "snip-toy-0.5-s1", "--images", "0,4", "--output", "seen.png"
    )
    assert (code, text) == (0, "Wrote seen.png.")
    assert Path("seen.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sparsity", "--metric", "pixel_acuracy"), "Did you mean 'pixel_accuracy'"),
        (("sparsity", "--filter", "method=nothing"), "There are no results left by the filters method=nothing."),
        (("sparsity", "--output", "figure.gif"), "does not end in .pdf, .svg, .png"),
        (("cost", "--metric", "sparsity", "--filter", "dataset=toy"), "name one of them by --metric"),
        (("predictions", "snip-toy-0.5-s1", "--images", "5"), "There is no test image 5; there are 5, from 0."),
        (("predictions", "snip-toy-0.5-s1", "--images", "x"), "are no numbers of images"),
        (("predictions", "snip-toy-0.5-s1", "snip-toy-single"), "differ in dataset"),
        (("predictions", "nothing"), "Unknown run 'nothing'"),
        (("pictures",), "Unknown command 'plot pictures'"),
        (("components", "--over-time", "--filter", "method=snip"), "sparsity.jsonl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_drawn_is_said_and_nothing_is_written(plot, tmp_path, arguments, words):
    code, text = plot(*arguments)
    assert code == 2
    assert words in text
    assert list(tmp_path.iterdir()) == []
