"""Rendering of the page. Only this file imports jinja2.

File and class names are untrusted. jinja2 escapes all text, and the page's Content-Security-Policy forbids
scripts and requests.
"""

from pathlib import Path
from typing import Any

import jinja2

from kinemae.data_tools.report.figures import short, size_text, time_text

_TEMPLATE = "page.html"


def render(content: dict[str, Any]) -> str:
    """Render the page as one self-contained text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=short, size=size_text, time=time_text, thousands=_thousands)
    return environment.get_template(_TEMPLATE).render(content)


def _thousands(value: int) -> str:
    return f"{value:,}"
