"""Scaffolds: new plugins that work as they are written, packages or single files, from a template of each kind."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from importlib import resources
from pathlib import Path
from string import Template

from mtlprune_bench import __version__
from mtlprune_bench.errors import UsageError, unknown

USES = {
    "method": "mtlbench run --method $name --dataset nyuv2",
    "scorer": "mtlbench run --method disparse-static --score $name --dataset nyuv2",
    "arbiter": "mtlbench run --method disparse-static --arbiter $name --dataset nyuv2",
    "schedule": "mtlbench run --method gmp --schedule $name --dataset nyuv2",
    "dataset": "mtlbench run --method disparse-static --dataset $name",
    "model": "mtlbench run --method disparse-static --dataset nyuv2 --model $name",
    "observer": "mtlbench run --method rigl --dataset nyuv2",
}
"""A command that uses a new plugin, by its kind."""

KINDS = tuple(USES)


def module_name(name: str) -> str:
    """Return the module of the plugin `name`.

    Raises UsageError where `name` cannot be that of a distribution on PyPI and of a registered thing, or its
    module would hide another one.
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) or "--" in name:
        near = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        hint = f" '{near}' would do." if near else ""
        raise UsageError(
            f"'{name}' is no name for a plugin: small letters, digits and single hyphens between.{hint}"
        )
    module = name.replace("-", "_")
    if not module.isidentifier() or keyword.iskeyword(module):
        raise UsageError(f"'{name}' is no name for a plugin, as Python has no module '{module}'. Try my-{name}.")
    if module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise UsageError(f"'{name}' is no name for a plugin: it would hide the module '{module}'. Try my-{name}.")
    return module


def write_package(name: str, kind: str, parent: Path) -> Path:
    """Write a package with a plugin of `kind` into a new folder of `parent`, and return the folder.

    Raises UsageError for a name or a kind that cannot be, and where there is such a folder already.
    """
    words = _words(name, kind)
    module, folder = words["module"], parent / name
    texts = {
        "pyproject.toml": _filled("pyproject.toml", words),
        f"{module}.py": words["code"],
        f"test_{module}.py": _filled("test.py", words),
        "README.md": _filled("README.md", words),
    }
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise _not_written(folder, error) from error
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    return folder


def write_file(name: str, kind: str, parent: Path) -> Path:
    """Write a plugin of `kind` as one new file in `parent`, for --plugin, and return it.

    Raises UsageError as write_package does.
    """
    words = _words(name, kind)
    path = parent / f"{words['module']}.py"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(words["code"])
    except OSError as error:
        raise _not_written(path, error) from error
    return path


def use_of(name: str, kind: str) -> str:
    """Return a command that uses the plugin `name` of `kind`."""
    return Template(USES[kind]).substitute(name=name)


def _not_written(path: Path, error: OSError) -> UsageError:
    if isinstance(error, FileExistsError):
        return UsageError(f"{path} is there already, and stays as it is. Take another name, or another --output.")
    return UsageError(f"{path} cannot be written: {error.strerror}. Name another folder by --output.")


def _words(name: str, kind: str) -> dict[str, str]:
    """Return what the templates have blanks for, and the plugin's code."""
    if kind not in KINDS:
        raise unknown("kind of plugin", kind, KINDS)
    words = {
        "name": name,
        "module": module_name(name),
        "version": __version__,
        "use": use_of(name, kind),
        "what": "plugins" if kind == "observer" else name,
    }
    code = _filled(f"{kind}.py", words)
    return {**words, "code": code, "description": code.splitlines()[0].strip('"')}


def _filled(template: str, words: dict[str, str]) -> str:
    """Return a template of this package with its blanks filled in."""
    text = (
        resources.files("mtlprune_bench.host").joinpath("templates", f"{template}.in").read_text(encoding="utf-8")
    )
    return Template(text).substitute(words)
