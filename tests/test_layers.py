"""The rules of the architecture: imports point down, plugins keep to themselves, the engine names nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "mtlprune_bench"

ROWS = [
    # Nothing of ours below these.
    ["errors", "seeds", "tensors", "data"],
    ["data.formats"],
    # Pure functions of tensors and numbers, and files that survive.
    [
        "deltas",
        "paradigms",
        "ranks",
        "significance",
        "masks",
        "arbiters",
        "allocation",
        "metrics",
        "augment",
        "files",
        "processes",
        "protocols",
        "recipe",
    ],
    # The words in which runs are described.
    ["schedules", "checkpoint", "packing", "launch", "store"],
    ["tasks"],
    ["data.layouts"],
    ["adapters", "components", "gradients", "evaluate", "data.indexes", "data.shards"],
    ["scorers", "analysis", "kernels", "batches", "networks", "data.locate", "data.pictures"],
    ["method", "timing", "data.photos", "data.reports", "data.synth"],
    ["learned", "prune", "state", "data.prepared", "data.verify"],
    ["config", "regrow", "thresholds", "train", "data.find"],
    # Plugins.
    ["hookspecs", "request"],
    ["registry"],
    # Whole runs, and what is said about them.
    ["observe", "grid", "opening", "environment"],
    ["experiment"],
    ["costs", "checks", "predictions", "reopening"],
    ["jobs"],
    ["stages"],
    ["pipeline"],
    ["run", "catalogue", "export", "results", "leftovers", "mask_sources", "data.inventory"],
    ["worker", "views", "measure"],
    ["captions", "published"],
    ["suite", "figures", "mask_views", "merge", "paired", "plans", "render"],
    ["survey", "charts", "evidence", "galleries", "mask_figures", "traces"],
    ["testing"],
    ["commands"],
]
ROW = {module: row for row, modules in enumerate(ROWS) for module in modules}


def modules():
    return sorted(path for path in ENGINE.rglob("*.py") if path.name != "__init__.py" or path.parent != ENGINE)


def layer_of(path):
    return named(".".join(path.relative_to(ENGINE).with_suffix("").parts))


def named(module):
    """Return what has a row: a module, or the folder of one; those of `data` have rows of their own."""
    parts = module.removesuffix(".__init__").split(".")
    return ".".join(parts[: 2 if parts[0] == "data" else 1])


def imported(path):
    """Return the modules of the package that a file imports, type-checking imports left out."""
    names = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_ImportFrom(self, node):
            module = node.module or ""
            if module == "mtlprune_bench":
                names.update(alias.name for alias in node.names)
            elif module.startswith("mtlprune_bench."):
                names.add(named(module.removeprefix("mtlprune_bench.")))

        def visit_Import(self, node):
            full = [alias.name for alias in node.names if alias.name.startswith("mtlprune_bench.")]
            names.update(named(name.removeprefix("mtlprune_bench.")) for name in full)

    Visitor().visit(ast.parse(path.read_text()))
    return {name for name in names if name != "__version__"}


def test_every_module_has_a_row():
    assert {layer_of(path) for path in modules()} == set(ROW)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ENGINE)))
def test_imports_point_down(path):
    own = layer_of(path)
    inner = {own} if path.parent != ENGINE else set()  # modules of one folder may import each other
    for name in imported(path) - inner:
        assert ROW[name] < ROW[own], f"{own} (row {ROW[own]}) imports {name} (row {ROW[name]})"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_plugins_import_public_names_only_and_no_other_plugin(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert not (node.module or "").startswith(("mtlprune_bench.", "plugins"))
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("mtlprune_bench") for alias in node.names)


def test_the_engine_names_no_method_dataset_or_task():
    from mtlprune_bench.deltas import DEFINITIONS
    from mtlprune_bench.registry import load_registry

    registry = load_registry()
    names = {entry.name for kind in ("methods", "datasets", "tasks", "models") for entry in registry.of_kind(kind)}
    # The engine's own values of axes keep their names, also where a method is named after one.
    names -= {entry.name for entry in registry.entries.values() if entry.plugin == "axes"}
    # So do deltas, each called after the paper that defines it.
    names -= DEFINITIONS.keys()
    assert len(names) > 10
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path.name}:{node.lineno} names '{node.value}'"


def test_the_package_and_its_help_do_not_import_torch():
    code = (
        "import sys; from mtlprune_bench.commands import run_cli; import mtlprune_bench; "
        "code = run_cli(['--help']); print('torch' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False 0"
    assert all(f"\n  {name} " in done.stdout for name in ("run", "plan", "ls", "show", "table", "data"))


def test_public_names_resolve_and_are_all_listed():
    import mtlprune_bench

    for name in mtlprune_bench.__all__:
        assert getattr(mtlprune_bench, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mtlprune_bench.nonsense
