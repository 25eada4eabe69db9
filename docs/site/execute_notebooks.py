"""Execute the notebooks of the site and store their outputs: `make notebooks`."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def execute(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """Execute a notebook in a folder; keep its outputs without the logs.

    Raises:
        CellExecutionError: a cell failed.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    content = nbformat.read(notebook, as_version=4)
    client = NotebookClient(
        content,
        timeout=600,
        startup_timeout=600,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    executed = client.execute()
    for cell in executed.cells:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    return executed


def main() -> None:
    """Execute the notebooks that are named, or all."""
    for notebook in map(Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(notebook, Path(folder)), notebook)


if __name__ == "__main__":
    main()
