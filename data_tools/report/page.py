"""The page itself. The only file that knows jinja2.

Everything on it comes from strangers: jinja2 escapes all of it, and the page's own policy forbids scripts and
every request, so that it shows the same on any machine and tells nobody that it was opened.
"""

from pathlib import Path
from typing import Any

import jinja2

from kinemae.data_tools.report.figures import short, size_text, time_text

_TEMPLATE = "page.html"


def render(content: dict[str, Any]) -> str:
    """The page as one text; it needs no other file."""
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
