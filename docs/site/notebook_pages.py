"""Notebooks as pages of the site: text, code, and the stored outputs."""

import base64
import json
import re
from pathlib import Path
from typing import Any

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def convert(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """Convert a notebook to Markdown and the images of its outputs by file name."""
    parts, pictures = [], {}
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data: dict[str, Any] = output.get("data", {})
            if "image/png" in data:
                name = f"{notebook.stem}-{number}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![Output of the cell above]({name})")
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{_ESCAPES.sub('', text).rstrip()}\n```")
    parts.insert(1, f"[Download this notebook]({notebook.name})")
    return "\n\n".join(parts) + "\n", pictures
