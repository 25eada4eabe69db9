"""Find a config file by its path, or by its name in `configs/`."""

import difflib
from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_ENDINGS = (".yaml", ".yml")
_KINDS = {
    "pretrain": "a pretraining config; fix: start it with kinemae pretrain",
    "finetune": "a fine-tuning config; fix: start it with kinemae finetune train",
    "cluster": "a cluster file; fix: start it with kinemae launch",
}


def find_config(given: str, kind: str, *, commands: Sequence[str] = ()) -> Path:
    """Find the config file that a command line names.

    Args:
        given: a path, or a name such as `demo` for `configs/KIND/demo.yaml`.
        kind: the folder of `configs/`: `pretrain` or `finetune`.
        commands: commands of the same program, suggested for a misspelled command.

    Raises:
        ValueError: there is no such file; the message names the nearest one.
    """
    path = Path(given)
    if path.is_file():
        _refuse_another_kind(path, kind)
        return path
    for folder in (Path("configs") / kind, CONFIGS / kind):
        named = folder / f"{given.removeprefix(f'{kind}/')}.yaml"
        if path.suffix not in _ENDINGS and named.is_file():
            return named
    if "=" in given and not path.exists():
        raise ValueError(
            f"expected a config file first, got the override {given!r}; fix: write CONFIG {given}"
        )
    if path.is_dir():
        stored = path / "config.yaml"
        more = f"; fix: give {stored}" if stored.is_file() else ""
        raise ValueError(f"{given}: expected a config file, got a folder{more}")
    near = _near(path, kind, commands)
    raise ValueError(f"no config file at {given}" + (f"; did you mean {near}?" if near else ""))


def _refuse_another_kind(path: Path, kind: str) -> None:
    folder = path.resolve().parent
    if folder.parent.name == "configs" and folder.name in _KINDS and folder.name != kind:
        raise ValueError(f"{path} is {_KINDS[folder.name]}")


def _near(path: Path, kind: str, commands: Sequence[str]) -> str | None:
    """The nearest file: another ending, another name in the same folder, a name in `configs/`, a command."""
    beside = [path.with_suffix(ending) for ending in _ENDINGS] if path.name.strip(".") else []
    found = next((other for other in beside if other.is_file()), None)
    if found is not None:
        return str(found)
    for folder in (path.parent, CONFIGS / kind):
        files = {other.stem: other for ending in _ENDINGS for other in folder.glob(f"*{ending}")}
        names = difflib.get_close_matches(path.stem, files, n=1)
        if names:
            return str(files[names[0]]) if folder == path.parent else names[0]
    close = difflib.get_close_matches(str(path), commands, n=1)
    return f"the command {close[0]}" if close else None
