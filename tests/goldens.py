"""The tables whose every character is kept in tests/golden; this file run as a script writes them anew."""

from __future__ import annotations

from pathlib import Path

from tables import ERROR, FAILURE, frame

from mtlprune_bench.results.comparisons import comparisons
from mtlprune_bench.results.deltas import ADAPMTL, MEAN
from mtlprune_bench.results.published import beside
from mtlprune_bench.results.render import FORMATS, render
from mtlprune_bench.results.views import pivoted, with_columns, with_ranks

FOLDER = Path(__file__).parent / "golden"
ENDINGS = {"terminal": "txt", "markdown": "md", "latex": "tex"}
BARE = {"task": "", "split": "", "higher_is_better": None}
WHOLE = BARE | {"component": "whole", "metric": "sparsity"}
STEPS = BARE | {"metric": "steps", "unit": "step", "higher_is_better": False, "value": 200.0}

RUNS = [
    # method, paradigm, sparsity, seed, mIoU, angle, further facts
    ("dense", "baseline", 0.0, 0, 0.50, 10.0, {}),
    ("dense", "baseline", 0.0, 1, 0.54, 12.0, {}),
    ("snip", "static", 0.5, 0, 0.45, 11.0, {}),
    ("snip", "static", 0.9, 0, 0.40, 13.0, {}),
    ("snip", "static", 0.9, 1, 0.42, 14.0, {}),
    ("snip", "static", 0.9, 0, 0.41, 13.5, {"settings": "score.batches=50"}),
    ("rigl", "dynamic", 0.9, 0, 0.47, 12.5, {}),
    ("rigl", "dynamic", 0.9, 1, 0.49, 12.5, {}),
    ("imp", "pre-trained", 0.9, 0, 0.45, 12.0, {"pretrained": True, "finetune": "50 steps, batch 8 [434f75]"}),
    ("adapmtl", "learned", 0.9, 0, 0.55, 9.0, {}),
]
"""The last one reaches a sparsity of 2 % only."""


def rows():
    changes = []
    for method, paradigm, sparsity, seed, miou, angle, more in RUNS:
        run = {
            "run": f"{method}-toy-{sparsity:g}-s{seed}",
            "method": method,
            "paradigm": paradigm,
            "seed": seed,
        } | more
        run |= {"sparsity": sparsity}
        reached = 0.02 if method == "adapmtl" else sparsity
        changes += [run | {"value": miou}, run | ERROR | {"value": angle}]
        changes += [run | WHOLE | {"value": reached}, run | STEPS]
    changes.append(
        FAILURE | {"run": "lth-toy-0.9-s0", "method": "lth", "status": "diverged", "reason": "a loss is nan"}
    )
    return frame(*changes, {"protocol": "disparse", "value": 0.6})


def printed():
    """Return rows that may stand beside table 1 of DiSparse."""
    real = {"dataset": "nyuv2", "data": "NYU-v2", "protocol": "disparse", "model": "deeplab-resnet34"}
    real |= {"recipe": "20000 steps, batch 16, crop 321 [abcdef]", "metric": "mean_iou", "task": "segmentation"}
    dense = real | {"method": "dense", "paradigm": "baseline", "sparsity": 0.0}
    return frame(
        dense | {"value": 0.28},
        real | {"method": "lth", "sparsity": 0.9, "value": 0.25},
        real | {"method": "lth", "sparsity": 0.9, "value": 0.26, "seed": 1},
        real | {"method": "snip", "sparsity": 0.9, "value": 0.24},
    )


def goldens():
    """Return the texts by the names of their files."""
    found = [with_ranks(each) for each in comparisons(rows(), [MEAN, ADAPMTL])]
    texts = {f"table.{ENDINGS.get(style, style)}": render(found, style) for style in FORMATS}
    texts["pivot.txt"] = render([pivoted(with_columns(found[1], ["miou", "delta"]))], "terminal")
    texts["published.md"] = render([beside(each) for each in comparisons(printed())], "markdown")
    texts["not-published.md"] = render([beside(each) for each in comparisons(rows())], "markdown")
    return texts


if __name__ == "__main__":
    for name, text in goldens().items():
        (FOLDER / name).write_text(text)
