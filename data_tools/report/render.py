"""Rendering of self-contained HTML pages from templates."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2

from kinemae.data_tools.command import writing_to
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.report.figures import short, size_text, time_text
from kinemae.data_tools.storage.location import local_out


def render(template: Path, content: dict[str, Any]) -> str:
    """Render a page as one self-contained text.

    Names of files and classes are untrusted. jinja2 escapes all text. The Content-Security-Policy of a page
    forbids requests and all scripts but the page's own, which it names by a hash.

    Args:
        template: a file that may include files of its own folder and of this one.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=short, size=size_text, time=time_text, thousands="{:,}".format)
    return environment.get_template(template.name).render(content)


def script_hash(script: str) -> str:
    """The source expression of an inline script for a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def data_uri(content: bytes, kind: str) -> str:
    """The URI that contains a file.

    Args:
        kind: its media type, for example image/png.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_page(out: Path, page: str) -> None:
    """Write a page atomically.

    Raises:
        DataError: the folder cannot be written.
    """
    with writing_to(out.parent):
        atomic_write_text(out, page, errors="backslashreplace")


def page_file(out: str | None) -> Path | None:
    """The optional OUT.html of a command.

    Raises:
        ValueError: OUT does not end in .html.
    """
    if out and not out.endswith(".html"):
        raise ValueError(f"OUT {out}: expected the name of a page, as in {Path(out).with_suffix('.html')}")
    return local_out(out) if out else None
