"""The documents: every method has its place in fidelity.md, and every test that is named there exists."""

import re
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.rows import page
from mtlprune_bench.host.registry import load_registry
from mtlprune_bench.results.comparisons import comparisons

TESTS = Path(__file__).parent
FIDELITY, DATA = ((TESTS.parent / "docs" / name).read_text() for name in ("fidelity.md", "data.md"))


def test_every_method_has_a_section():
    heads = " ".join(line for line in FIDELITY.splitlines() if line.startswith(("## ", "| dense")))
    words = set(re.split(r"[ ,|]+", heads))
    methods = {entry.name for entry in load_registry().of_kind("methods")}
    assert methods <= words, f"missing: {sorted(methods - words)}"


@pytest.mark.parametrize(("document", "fewest"), [(FIDELITY, 50), (DATA, 27)], ids=["fidelity", "data"])
def test_every_test_that_holds_a_fact_exists(document, fewest):
    code = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", document))
    assert len(named) > fewest
    assert named <= known, f"missing: {sorted(named - known)}"


def test_every_trap_has_a_line_with_a_test():
    lines = re.findall(r"^\| (\d+) \|.*`test_\w+` \|$", DATA, re.MULTILINE)
    assert lines == [str(number) for number in range(1, 28)]


def test_every_dataset_with_files_and_every_layout_is_described():
    for entry in load_registry().of_kind("datasets"):
        if entry.value.files is not None:
            assert {entry.name, *(layout.name for layout in entry.value.files.layouts)} <= set(
                re.findall(r"`([\w-]+)`", DATA)
            )


def test_the_tables_in_print_are_those_of_the_rows():
    results = TESTS.parent / "benchmarks" / "results"
    found = comparisons(pd.read_parquet(results / "methods.parquet"))
    assert len(found) == 1, "one setting, so one table"
    assert page(found[0]).strip() in (results / "README.md").read_text()
