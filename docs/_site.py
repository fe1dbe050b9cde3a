"""What the site has beside its pages: references made of the code, formulas, files that pages link to."""

from __future__ import annotations

import dataclasses
import inspect
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from latex2mathml.converter import convert
from mkdocs.structure.files import File, InclusionLevel

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
REPOSITORY = "repository"
"""Where in the site the files of the repository are that pages link to; their places among each other stay."""

CODE = re.compile(r"^( *)(```+).*?^\1\2 *$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
FORMULA = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PICTURE = re.compile(r"!\[[^\]]*\]\((\w+\.svg)\)")
INLINE = re.compile(r"\$`([^`\n]+)`\$")
REGISTERED = (
    *("Method", "LearnedMethod", "Scoring", "Voter", "Update", "Model", "Task", "Metric"),
    *("Dataset", "Labels", "Recipe", "DataRequest", "Splits", "Sample", "Files", "Layout"),
)
"""The public classes that are described beside the hooks, in this order."""


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the files of the repository that pages link to, and those that these link to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        source = waiting.pop()
        for path in _outside(source):
            place = f"{REPOSITORY}/{path.relative_to(ROOT).as_posix()}"
            if place not in seen:
                seen.add(place)
                files.append(_outsider(config, place, path))
                if path.suffix == ".md":
                    waiting.append(place)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is made of the code, and turn links into the repository and formulas into what the site has."""
    source = page.file.src_uri
    for mark, make in GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(make()))
    markdown = FORMULA.sub(
        lambda found: f'<div class="formula">{convert(found[1], display="block")}</div>', markdown
    )
    # In the page itself a picture has the colours of the page, light or dark.
    markdown = PICTURE.sub(
        lambda found: f'<div class="picture">{" ".join((ROOT / "docs" / found[1]).read_text().split())}</div>',
        markdown,
    )
    markdown = INLINE.sub(lambda found: convert(found[1]), markdown)
    return _outside_code(markdown, lambda text: LINK.sub(lambda found: _moved(found, source), text))


def _outsider(config: MkDocsConfig, place: str, path: Path) -> File:
    """Return a file of the repository as one of the site, which no menu has."""
    file = File.generated(config, place, abs_src_path=str(path))
    file.inclusion = InclusionLevel.NOT_IN_NAV
    return file


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return `markdown` with `change` made to all that is not code."""
    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def _target(source: str, link: str) -> Path:
    """Return the file of the repository that `link` of the page `source` means."""
    inside = source.removeprefix(f"{REPOSITORY}/")
    page = ROOT / inside if inside != source else ROOT / "docs" / source
    return Path(posixpath.normpath(page.parent / link))


def _outside(source: str) -> Iterator[Path]:
    """Yield the files of the repository, beside those in docs, to which the page `source` links."""
    own = _target(source, posixpath.basename(source))
    links: list[str] = []

    def note(text: str) -> str:
        links.extend(found[2] for found in LINK.finditer(text))
        return text

    _outside_code(own.read_text(encoding="utf-8"), note)
    for link in links:
        path = _target(source, link)
        if path.is_file() and path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs"):
            yield path


def _moved(found: re.Match[str], source: str) -> str:
    """Return a link of the page `source` as the site has it; one to nothing stays, for mkdocs to say so."""
    path = _target(source, found[2])
    if not path.is_file() or not path.is_relative_to(ROOT):
        return found[0]
    docs = ROOT / "docs"
    place = path.relative_to(docs) if path.is_relative_to(docs) else Path(REPOSITORY) / path.relative_to(ROOT)
    return f"{found[1]}{posixpath.relpath(place.as_posix(), posixpath.dirname(source) or '.')}{found[3]}"


def commands() -> Iterator[str]:
    """Yield every command with its usage, what it says of itself, and its arguments and options."""
    from mtlprune_bench.commands import cli

    yield from _command(cli, click.Context(cli, info_name="mtlbench"))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from (
        f"{'#' * (2 + context.command_path.count(' '))} {context.command_path}",
        "",
        f"```\n{usage}\n```",
        "",
    )
    yield from (*_prose(inspect.cleandoc(command.help or "")), "")
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    yield from _table([[record[0], *record[1:]] for record in records if record], ["option", "what it is"])
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, "a listed command is there"
            yield from _command(inner, click.Context(inner, info_name=name, parent=context))


def settings() -> Iterator[str]:
    """Yield the tables of all settings, as `mtlbench ls` prints them, by kind and name."""
    from mtlprune_bench.host.registry import KINDS, load_registry
    from mtlprune_bench.runs.catalogue import SETTINGS, general_settings, tables

    registry = load_registry()
    yield from ("## General", "", *_table(*general_settings()[1:]))
    for kind in KINDS:
        sections: list[str] = []
        for entry in registry.of_kind(kind):
            found: list[str] = []
            own = False
            for title, rows, headings in tables(registry, entry.name):
                # Several kinds may have a thing of this name; their tables follow each other.
                if headings == ["fact", "value"]:
                    own = title.startswith(f"{kind.removesuffix('s')} {entry.name}:")
                elif own and headings == SETTINGS:
                    found += _table(rows, headings)
            if found:
                sections += [f"### {entry.name} {{ #{kind}-{entry.name} }}", "", _text(entry.summary), "", *found]
        if sections:
            yield from (f"## {kind.capitalize()}", "", *sections)


def _table(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> Iterator[str]:
    """Yield a table of Markdown; its first column is code, and of settings the second, too."""
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    codes = 1 + (len(headings) > 2)
    for row in rows:
        cells = [f"`{text}`" if text else "" for text in row[:codes]] + [_text(text) for text in row[codes:]]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _text(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|")


def protocols() -> Iterator[str]:
    """Yield the rows of every switch of a protocol."""
    from mtlprune_bench.protocols import Protocol

    for item in dataclasses.fields(Protocol):
        if item.metadata:
            yield f"| `{item.name}` | {item.metadata['standard']} | {item.metadata['disparse']} |"


def hooks() -> Iterator[str]:
    """Yield every hook with its exact arguments and what it says of itself."""
    from mtlprune_bench.host import hookspecs
    from mtlprune_bench.host.registry import REGISTER

    found = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, f"{hookspecs.PROJECT}_spec")}
    for title, registers in (("Registration", True), ("Observers", False)):
        yield from (f"## {title}", "")
        for name, hook in found.items():
            if name.startswith(REGISTER) is registers:
                yield from _described(name, f"{name}{inspect.signature(hook)}".replace("'", ""), hook)


def objects() -> Iterator[str]:
    """Yield what is registered and what hooks are given: each class with its fields."""
    import mtlprune_bench
    from mtlprune_bench.runs.observe import RunInfo

    for thing in [*(getattr(mtlprune_bench, name) for name in REGISTERED), RunInfo]:
        fields = (
            [item for item in dataclasses.fields(thing) if item.init] if dataclasses.is_dataclass(thing) else []
        )
        yield from _described(thing.__name__, f"class {thing.__name__}", thing, "\n".join(map(_field, fields)))


def _field(item: dataclasses.Field[Any]) -> str:
    """Return a field as it is written in its class, with its help."""
    default = "" if item.default is dataclasses.MISSING else f" = {getattr(item.default, 'name', item.default)!r}"
    help = item.metadata.get("help", "")
    return f"    {item.name}: {item.type}{default}" + (f"  # {help}" if help else "")


def _described(name: str, signature: str, thing: object, fields: str = "") -> Iterator[str]:
    code = f"{signature}:\n{fields}" if fields else signature
    yield from (f"### {name}", "", "```python", code, "```", "", *(_prose(inspect.getdoc(thing) or "")), "")


def _prose(text: str) -> list[str]:
    """Return a docstring as Markdown: underscores and brackets are meant as they stand."""
    return [
        re.sub(r"(?<!`)<", "&lt;", line).replace("[", "\\[").replace("_", "\\_") if "`" not in line else line
        for line in text.splitlines()
    ]


GENERATED: Mapping[str, Callable[[], Iterator[str]]] = {
    "<!-- commands -->": commands,
    "<!-- settings -->": settings,
    "<!-- protocols -->": protocols,
    "<!-- hooks -->": hooks,
    "<!-- objects -->": objects,
}
"""What is made of the code, by the words in whose place it comes."""
