"""Inputs of a run (data sets, exported encoders), identified by fingerprint, not by path.

`RUN/inputs.json` holds the inputs of the first start. A run continues if an input has moved or its path is
written differently; it is refused if the path has other content.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.mixture import SeveralSets
from kinemae.data_tools.stream.tar_list import TarList
from kinemae.pretrain.runtime.config_changes import Change

INPUTS_FILE = "inputs.json"
_MOVED = "the same content, elsewhere"
_READ_ONCE = frozenset(("init_from",))  # by the first start only
_WEIGHTS = "*.safetensors"
_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 1 << 16


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a run.

    Attributes:
        key: its config key.
        place: a folder or URL, as in the config.
        fingerprint: identifies its content.
        weight: in a mixture.
    """

    key: str
    place: str
    fingerprint: str
    weight: float | None = None

    @property
    def content(self) -> tuple[str, float | None]:
        """The values that must stay the same."""
        return self.fingerprint, self.weight


def data_inputs(
    key: str,
    place: str | None,
    index: ShardIndex | SeveralSets | TarList,
    weights: Mapping[str, float] | None = None,
) -> list[Input]:
    """A data set as an input; each one of several."""
    if isinstance(index, SeveralSets):
        return [
            Input(key=key, place=name, fingerprint=part.identity, weight=(weights or {}).get(name))
            for name, part in index.sets.items()
        ]
    return [Input(key=key, place=str(place), fingerprint=index.identity)]


def encoder_inputs(key: str, value: Any) -> list[Input]:
    """The exported encoder in a config value, or those under the keys `encoder` of a nested value."""
    if isinstance(value, Mapping):
        return [
            found
            for name, child in value.items()
            if isinstance(child, Mapping) or name == "encoder"
            for found in encoder_inputs(f"{key}.{name}", child)
        ]
    files = sorted(Path(value).glob(_WEIGHTS)) if isinstance(value, str) else []
    return [Input(key=key, place=value, fingerprint=_sampled(files))] if files else []


def read_inputs(run_dir: Path) -> list[Input]:
    """The inputs of the first start; none if the run has no record of them.

    Raises:
        ValueError: the file is incomplete, or of another version.
    """
    path = run_dir / INPUTS_FILE
    try:
        return [Input(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the inputs of the run as this version writes them, got {error}; fix: "
            "restore it from a copy, or remove it to compare paths instead"
        ) from error


def write_inputs(run_dir: Path, inputs: Sequence[Input]) -> None:
    """Write the inputs of a run that has no record of them."""
    if inputs and not (run_dir / INPUTS_FILE).exists():
        text = json.dumps([asdict(entry) for entry in inputs], indent=1, ensure_ascii=False)
        atomic_write_text(run_dir / INPUTS_FILE, text)


def original_places(run_dir: Path, inputs: Sequence[Input]) -> dict[str, str]:
    """Map each current location to the location of the same content at the first start."""
    places = {}
    known = sorted(read_inputs(run_dir), key=lambda entry: entry.place)
    for entry in sorted(inputs, key=lambda entry: entry.place):
        same = next((old for old in known if (old.key, old.content) == (entry.key, entry.content)), None)
        if same is not None:
            known.remove(same)
            places[entry.place] = same.place
    return places


def compare_inputs(changes: Sequence[Change], old: Sequence[Input], new: Sequence[Input]) -> list[Change]:
    """The changes of a config, with inputs compared by content instead of path."""
    judged = list(changes)
    for key in sorted({entry.key for entry in old} & {entry.key for entry in new}):
        before = [entry for entry in old if entry.key == key]
        after = [entry for entry in new if entry.key == key]
        textual = [change for change in judged if _is_under(change.key, key)]
        if sorted(map(_order, before)) == sorted(map(_order, after)):
            judged = [
                replace(change, is_allowed=True, effect=_MOVED) if _is_under(change.key, key) else change
                for change in judged
            ]
        elif not textual and key not in _READ_ONCE:
            judged += _contents_changed(key, before, after)
    return sorted(judged, key=lambda change: change.is_allowed)


def _contents_changed(key: str, old: Sequence[Input], new: Sequence[Input]) -> Iterator[Change]:
    """Inputs with the same location and other content."""
    was = {entry.place: entry for entry in old}
    for entry in new:
        before = was.get(entry.place)
        if before is not None and before.fingerprint != entry.fingerprint:
            yield Change.of(
                key,
                f"{entry.place} with fingerprint {before.fingerprint}",
                f"{entry.place} with fingerprint {entry.fingerprint}",
            )


def _order(entry: Input) -> tuple[str, float]:
    return entry.fingerprint, entry.weight or 0.0


def _is_under(key: str, parent: str) -> bool:
    return key == parent or key.startswith(f"{parent}.")


def _sampled(files: Sequence[Path]) -> str:
    """A fingerprint of large files: sizes, names, and blocks spread evenly over each, both ends included."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLED_BLOCKS):
                file.seek(max(0, size - _BLOCK_BYTES) * number // (_SAMPLED_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]
