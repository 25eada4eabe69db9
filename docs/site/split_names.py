"""Extension of griffe: `height, width: ...` in a docstring becomes an argument on each line."""

import re
from typing import Any

import griffe

_SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.M)


class SplitNames(griffe.Extension):
    """Edit the docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Repeat the text for each name."""
        if obj.docstring is not None:
            obj.docstring.value = _SHARED.sub(_repeated, obj.docstring.value)


def _repeated(found: re.Match[str]) -> str:
    return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))
