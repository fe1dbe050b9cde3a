"""The rules of the architecture: imports point down, plugins keep to themselves, the engine names nothing."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINE = ROOT / "mtlprune_bench"

ROWS = [
    # Nothing of ours below these.
    ["errors", "seeds", "tensors", "paradigms"],
    # Files that survive, processes, and the words in which runs are described.
    ["files", "processes", "protocols", "recipe", "data.formats", "host"],
    ["store", "tasks"],
    ["data.layouts"],
    ["adapters"],
    # What a run is made of.
    ["data", "pruning"],
    ["training"],
    # Whole runs, and what is said about them.
    ["runs"],
    ["results", "analysis", "export"],
    ["figures"],
    ["report"],
    ["testing", "api"],
    ["commands"],
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}


def modules():
    return sorted(path for path in ENGINE.rglob("*.py") if path != ENGINE / "__init__.py")


def name_of(path):
    return ".".join(path.relative_to(ENGINE).with_suffix("").parts).removesuffix(".__init__")


def placed(module):
    """Return what of ROWS a module belongs to: itself, or its folder."""
    return module if module in ROW else module.partition(".")[0]


def is_module(name):
    path = ENGINE.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path):
    """Return the modules of the package that a file imports, type-checking imports left out."""
    names = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                self.generic_visit(node)

        def visit_ImportFrom(self, node):
            package, _, inner = (node.module or "").partition(".")
            if package == "mtlprune_bench":
                for alias in node.names:
                    name = f"{inner}.{alias.name}".lstrip(".")
                    names.add(name if is_module(name) else inner)

        def visit_Import(self, node):
            full = [alias.name for alias in node.names if alias.name.startswith("mtlprune_bench.")]
            names.update(name.removeprefix("mtlprune_bench.") for name in full)

    Visitor().visit(ast.parse(path.read_text()))
    return names - {""}


def test_every_module_has_a_row():
    assert {placed(name_of(path)) for path in modules()} == set(ROW)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ENGINE)))
def test_imports_point_down(path):
    own = placed(name_of(path))
    for name in imported(path):
        # What belongs to one row by its folder may import each other.
        assert placed(name) == own or ROW[placed(name)] < ROW[own], f"{name_of(path)} imports {name}"


def test_no_module_imports_itself_by_way_of_others():
    graph = {name_of(path): imported(path) for path in modules() if path.name != "__init__.py"}
    assert set(TopologicalSorter(graph).static_order()) >= set(graph)


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
    from mtlprune_bench.host.registry import load_registry
    from mtlprune_bench.results.deltas import DEFINITIONS

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
