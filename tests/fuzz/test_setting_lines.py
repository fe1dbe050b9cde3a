"""Settings: whatever is asked for on the command line makes an experiment, or is refused with one line."""

import pytest
from hypothesis import strategies as st
from inputs import ODD, TREES, fuzz, sizes

from mtlprune_bench.errors import MtlbenchError
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.runs.config import Engine, override
from mtlprune_bench.runs.request import SECTIONS, Request, nested_settings, parse_settings
from mtlprune_bench.runs.suite import prepare_all, runner_of
from mtlprune_bench.testing import TINY, register_tiny

NAMES = [
    *(
        "train.lr",
        "train.steps",
        "train.batch",
        "train.crop",
        "train.precision",
        "train.accumulate",
        "train.lr_decay",
    ),
    *(
        "train.scales",
        "train.flip",
        "train.update_every",
        "train.select_every",
        "train.eval_batch",
        "finetune.steps",
    ),
    *(
        "method.score",
        "method.score.name",
        "method.score.batches",
        "method.scope",
        "method.arbiter",
        "method.control",
    ),
    *(
        "method.arbiter.count",
        "method.allocation",
        "method.schedule",
        "method.schedule.rate",
        "method.schedule.steps",
    ),
    *(
        "method.schedule.begin",
        "method.schedule.end",
        "method.start",
        "method.variant",
        "method.s_init",
        "method.grow",
    ),
    *(
        "method.calibration",
        "method.calibration.keep_ratio",
        "method.rounds",
        "method.group_by",
        "method.checkpoint",
    ),
    *("model.width", "model", "data.root", "data.require_real", "data.layout", "engine.device", "engine.devices"),
    *(
        "engine.workers",
        "engine.checkpoint_seconds",
        "runner.name",
        "runner.workers",
        "method",
        "train",
        ".",
        "a.b.c",
    ),
]
WORDS = [
    "snip",
    "magnitude",
    "once",
    "cubic",
    "erk",
    "at-least:2",
    "at-least:",
    "per-task",
    "joint",
    "[]",
    "()",
    "1,2",
]


@pytest.fixture(scope="module")
def plugins():
    registry = load_registry()
    register_tiny(registry)
    return registry


def prepared(plugins, opened):
    def target(given):
        method, sparsity, seed, settings = given
        request = Request(method=method, dataset=TINY, sparsity=sparsity, seed=seed, settings=settings)
        (experiment,) = prepare_all([request], plugins, lambda text: None, opened)
        assert experiment.config.run_id
        assert len(experiment.plan) >= 0
        override(Engine(), settings.get("engine", {}), "engine")
        runner_of(settings.get("runner", {}), plugins)

    return target


LINES = st.lists(
    st.tuples(st.sampled_from(NAMES) | st.text(max_size=12), st.sampled_from(WORDS) | ODD.map(str)).map("=".join),
    min_size=1,
    max_size=3,
)


@sizes(6_000)
def test_lines_of_settings(count, plugins, tmp_path, capsys):
    methods = st.sampled_from([entry.name for entry in plugins.of_kind("methods")])
    target, opened = prepared(plugins, {}), {}

    def lines(given):
        method, some = given
        target((method, 0.5, 0, parse_settings(some)))

    assert opened == {}
    fuzz(lines, st.tuples(methods, LINES), count, tmp_path, capsys, MtlbenchError)


@sizes(6_000)
def test_settings_from_files_and_from_python(count, plugins, tmp_path, capsys):
    methods = st.sampled_from([entry.name for entry in plugins.of_kind("methods")]) | st.text(max_size=10)
    tables = st.dictionaries(st.sampled_from([*SECTIONS, *NAMES]), TREES, max_size=3)
    sparsities = st.floats() | st.sampled_from([0.0, 0.5, 0.9, 1.0, -0.1])
    target = prepared(plugins, {})

    def nested(given):
        method, sparsity, seed, settings = given
        target((method, sparsity, seed, nested_settings(settings)))

    strategy = st.tuples(methods, sparsities, st.integers(0, 2**70), tables)
    fuzz(nested, strategy, count, tmp_path, capsys, MtlbenchError)
