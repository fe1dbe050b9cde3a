"""The documentation site: built without a warning, complete, and with nothing that is fetched from elsewhere."""

import inspect
import logging
import re
import shutil
from html import unescape
from pathlib import Path

import click
import pytest

from mtlprune_bench.commands import cli
from mtlprune_bench.host import hookspecs
from mtlprune_bench.host.registry import load_registry

ROOT = Path(__file__).parents[1]

pytest.importorskip("material", reason="the site needs pip install 'mtlprune-bench[docs]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def build(folder, site):
    """Build the site of `folder`, as `mkdocs build` does, and return what is warned of."""
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config

    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        mkdocs_build(load_config(str(folder / "mkdocs.yml"), site_dir=str(site), strict=False))
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    return said


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the whole site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    assert build(ROOT, folder) == []
    return folder


def text_of(page):
    """Return what a reader sees of a page, without spaces, as code is cut into coloured parts."""
    body = re.search(r"<article.*?</article>", page.read_text(), re.DOTALL)[0]
    return re.sub(r"\s", "", unescape(re.sub(r"<[^>]+>", "", body)))


def test_every_document_is_a_page(site):
    for path in (ROOT / "docs").glob("*.md"):
        assert (site / f"{path.stem}.html").is_file()


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"?([^\"\s>]+)", text)
        fetched += re.findall(r"<link\b[^>]*?\bhref=\"?([^\"\s>]+)", text)
        outside = [target for target in fetched if re.match(r"[a-z]+:(?!image/)|//", target)]
        assert len(fetched) > 3
        assert not outside, f"{page.name} fetches {outside}"
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", style.read_text()), style


def test_every_command_and_option_is_described(site):
    text = text_of(site / "commands.html")

    def check(command, context):
        assert context.command_path.replace(" ", "") in text
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[-1] in text, f"{context.command_path} {parameter.opts[-1]}"
        for name in command.list_commands(context) if isinstance(command, click.Group) else ():
            inner = command.get_command(context, name)
            check(inner, click.Context(inner, info_name=name, parent=context))

    check(cli, click.Context(cli, info_name="mtlbench"))


def test_every_hook_has_its_exact_arguments(site):
    text = text_of(site / "hooks.html")
    found = [name for name, hook in vars(hookspecs).items() if hasattr(hook, "mtlbench_spec")]
    assert len(found) > 15
    for name in found:
        arguments = str(inspect.signature(getattr(hookspecs, name))).replace("'", "").replace(" ", "")
        assert f"{name}{arguments}" in text


def test_every_setting_of_every_method_is_listed(site):
    text = (site / "settings.html").read_text()
    for entry in load_registry().of_kind("methods"):
        assert f'id="methods-{entry.name}"' in text
    for setting in ("data.root", "engine.device", "train.update_every", "method.score.batches", "model.width"):
        assert f"<code>{setting}</code>" in text


def test_formulas_and_pictures_are_part_of_the_page(site):
    page = (site / "protocols.html").read_text()
    written = (ROOT / "docs" / "protocols.md").read_text().count("```math")
    assert written > 5
    assert page.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"') == written
    assert "$" not in text_of(site / "protocols.html")
    assert "\\frac" not in page
    assert "<svg" in (site / "concepts.html").read_text().partition("<article")[2]


def test_files_that_pages_link_to_come_with_the_site(site):
    assert 'href="repository/benchmarks/nyuv2.toml"' in (site / "papers.html").read_text()
    assert (site / "repository/benchmarks/nyuv2.toml").read_bytes() == (
        ROOT / "benchmarks/nyuv2.toml"
    ).read_bytes()
    assert 'href="../quick.toml"' in (site / "repository/benchmarks/speed/index.html").read_text()


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("[one](nowhere.md)", "contains a link 'nowhere.md', but the target is not found"),
        ("[one](../nothing.toml)", "nothing.toml"),
        ("[one](#nothing)", "no such anchor"),
        ("", 'not included in the "nav"'),
    ],
    ids=["page", "file", "anchor", "left out"],
)
def test_a_bad_link_or_a_page_that_is_left_out_is_a_warning(tmp_path, text, warning):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "_site.py", tmp_path / "docs")
    configuration = (ROOT / "mkdocs.yml").read_text()
    before, _, after = configuration.partition("nav:\n")
    _, _, rest = after.partition("validation:\n")
    (tmp_path / "mkdocs.yml").write_text(f"{before}nav:\n  - index.md\n\nvalidation:\n{rest}")
    (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n{text}\n")
    if not text:
        (tmp_path / "docs" / "other.md").write_text("# Other\n")
    (said,) = build(tmp_path, tmp_path / "site")
    assert warning in said
