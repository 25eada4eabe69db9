"""Files of TensorBoard's projector: vectors, names, labels and thumbnails.

LOGDIR/tensors.tsv, metadata.tsv   one line per row
LOGDIR/sprite.png                  thumbnails, if the features have them
LOGDIR/projector_config.pbtxt      names of these files; written last
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from kinemae.data_tools.command import writing_to
from kinemae.data_tools.files import atomic_write_text
from kinemae.finetune.features.files import FeatureTable
from kinemae.finetune.features.sprite import make_sprite

_COLUMNS = ("label", "video", "start_s", "end_s", "key", "group")


def write_projector(folder: Path, table: FeatureTable, rows: np.ndarray, *, colour: str | None) -> None:
    """Write the files of some rows.

    Args:
        colour: first column of the metadata, by which TensorBoard labels points; None: label.

    Raises:
        DataError: the folder cannot be written.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        vectors_RD = table.vectors_RD[rows]
        lines = ("\t".join(f"{value:.7g}" for value in row) for row in vectors_RD.tolist())
        atomic_write_text(folder / "tensors.tsv", "\n".join(lines) + "\n")
        atomic_write_text(folder / "metadata.tsv", _metadata(table, rows, colour))
        sprite = ""
        if table.thumbnails:
            found = make_sprite([table.thumbnails[row] for row in rows])
            partial = folder / "sprite.png.partial"
            partial.write_bytes(found.encoded("PNG"))
            partial.replace(folder / "sprite.png")
            dims = f"    single_image_dim: {found.size}\n" * 2
            sprite = f'  sprite {{\n    image_path: "sprite.png"\n{dims}  }}\n'
        config = (
            'embeddings {\n  tensor_name: "features"\n  tensor_path: "tensors.tsv"\n'
            f'  metadata_path: "metadata.tsv"\n{sprite}}}\n'
        )
        atomic_write_text(folder / "projector_config.pbtxt", config)


def _metadata(table: FeatureTable, rows: np.ndarray, colour: str | None) -> str:
    """Columns of the rows with a line of names; TensorBoard's format has no escapes."""
    wanted = dict.fromkeys([*([colour] if colour else []), *_COLUMNS])
    columns = {name: table.columns[name] for name in wanted if any(table.columns.get(name, ()))}
    columns.setdefault("key", table.keys)
    lines = ["\t".join(["row", *columns])]  # a single column must not have a line of names
    lines += [
        "\t".join([str(row), *(_cell(column[row]) for column in columns.values())]) for row in rows.tolist()
    ]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
    return re.sub(r"\s+", " ", text)
