"""Published tables: with any bytes changed they are rows of finite numbers, or damaged by name."""

import math
from importlib.resources import files

from hypothesis import strategies as st
from inputs import fuzz, mutated, sizes

from mtlprune_bench.errors import DataError
from mtlprune_bench.results.published import parse

TABLES = [path.read_bytes() for path in (files("mtlprune_bench.results") / "papers").iterdir()]


@sizes(6_000)
def test_tables(count, tmp_path, capsys):
    def target(data):
        for row in parse("table.csv", data):
            assert 0 <= row.sparsity < 1
            assert all(math.isfinite(float(text)) for text in row.texts.values())
            assert "table.csv" not in row.source

    fuzz(target, st.sampled_from(TABLES).flatmap(mutated) | st.binary(), count, tmp_path, capsys, DataError)
