"""The page: a report's content, its style and its script in one file that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

SCRIPTS = ("base.js", "controls.js", "table.js", "charts.js", "sections.js", "provenance.js", "start.js")
"""Parts of one script, in this order."""


def page(content: Mapping[str, Any]) -> str:
    """Return a report as HTML; the same content gives the same bytes.

    The content is JSON in which no "<" is left, so that no text of it can end its element; the script makes text
    of it, never markup. The policy allows this style and this script, by their hashes, and forbids to load more.
    """
    folder = files("mtlprune_bench.report") / "template"
    style = (folder / "report.css").read_text("utf-8")
    script = "".join((folder / name).read_text("utf-8") for name in SCRIPTS)
    parts = {
        "POLICY": f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'",
        "STYLE": style,
        "SCRIPT": script,
        "CONTENT": as_json(content),
    }
    text = (folder / "report.html").read_text("utf-8")
    for name, part in parts.items():  # the content last: nothing in it is replaced
        text = text.replace(f"%{name}%", part, 1)
    return text


def as_json(content: Mapping[str, Any]) -> str:
    """Return `content` as ASCII that is safe inside an element of HTML. Raises ValueError for nan."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _source(text: str) -> str:
    """Return how a Content-Security-Policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
