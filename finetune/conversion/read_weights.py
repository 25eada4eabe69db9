"""Load checkpoints of other systems: safetensors or PyTorch files, and folders of transformers.

Loading executes no code: PyTorch files are read with `weights_only`.
"""

import argparse
import errno
import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load; nothing else of pickle is used
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.overrides import as_override
from kinemae.finetune.conversion.key_rules import Tensors
from kinemae.pretrain.folder_kinds import exported_in
from kinemae.pretrain.model.tokens import COLOURS, MEAN, STD

_CONTAINERS = ("model", "module", "state_dict", "model_state", "ema_encoder", "target_encoder", "encoder")
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
# Exceptions of both formats' readers for a damaged file or another format.
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
# VideoMAE's files contain the parsed command line beside the weights.
_ALLOWED_GLOBALS = {"argparse.Namespace": argparse.Namespace}


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """Contents of a file or a folder.

    Attributes:
        source: the file of the weights, for messages.
        tensors: by name, without prefixes of wrappers.
        config: `config.json` of a transformers folder, else empty.
        preprocessor: `preprocessor_config.json` or `video_preprocessor_config.json` of a transformers folder,
            else empty.
    """

    source: Path
    tensors: Tensors
    config: dict[str, Any]
    preprocessor: dict[str, Any]

    def check_config(self, expected: dict[str, Any]) -> None:
        """Check the values of `config.json`; a missing key has the expected value.

        Raises:
            CheckpointError: another value.
        """
        for key, value in expected.items():
            found = self.config.get(key, value)
            if found != value:
                raise CheckpointError(f"{self.source}: expected {key}={value!r}, got {found!r}")

    def check_sizes(self, sizes: dict[str, Any]) -> None:
        """Check that `config.json` describes the tensors.

        Args:
            sizes: the output of `infer_sizes`.

        Raises:
            CheckpointError: another value, for example since the last blocks are missing.
        """
        expected = {
            "hidden_size": sizes["width"],
            "num_hidden_layers": sizes["depth"],
            "intermediate_size": sizes["mlp_width"],
            "tubelet_size": sizes["patch"][0],
            "patch_size": sizes["patch"][1],
        }
        for key, value in expected.items():
            found = self.config.get(key, value)
            if found != value:
                raise CheckpointError(
                    f"{self.source}: expected tensors for {key}={found!r} of {CONFIG}, got those for "
                    f"{value}; fix: download both files again"
                )

    def whole_number(self, key: str, default: int) -> int:
        """Return a whole number of `config.json`.

        Raises:
            CheckpointError: another value.
        """
        found = self.config.get(key, default)
        if type(found) is not int:
            raise CheckpointError(f"{self.source}: expected a whole number for {key}, got {found!r}")
        return found

    def class_names(self, count: int) -> tuple[str, ...]:
        """Return the names of `count` classes in `config.json`, or their numbers.

        Raises:
            CheckpointError: no names by number.
        """
        names = self.config.get("id2label") or {}
        if not isinstance(names, dict):
            raise CheckpointError(f"{self.source}: expected id2label of names by number, got {names!r}")
        return tuple(str(names.get(str(number), number)) for number in range(count))

    def normalization(self) -> dict[str, tuple[float, ...]]:
        """Return mean and std of a folder of transformers or timm, ImageNet's if it has none.

        Raises:
            CheckpointError: not a number for each colour.
        """
        timm = self.config.get("pretrained_cfg")
        found = {}
        for name, default in (("mean", MEAN), ("std", STD)):
            known = timm.get(name, default) if isinstance(timm, dict) else default
            value: Any = self.preprocessor.get(f"image_{name}", known)
            is_list = isinstance(value, list | tuple) and len(value) == COLOURS
            if not is_list or any(type(number) not in (int, float) for number in value):
                raise CheckpointError(
                    f"{self.source}: expected {COLOURS} numbers for the {name} of the pixels, got {value!r}"
                )
            found[name] = tuple(value)
        return found


def load_checkpoint(path: Path, *, key: str | None = None) -> LoadedCheckpoint:
    """Load a file, or a folder written by transformers.

    Args:
        key: the entry of a PyTorch file with the tensors; None for the first of the known names.

    Raises:
        CheckpointError: missing, damaged, unsafe, or without named tensors.
    """
    if path.is_dir():
        path = _weights_in(path)
    is_folder = path.name in _WEIGHTS
    return LoadedCheckpoint(
        source=path,
        tensors=_unwrap(_read_file(path), path, key),
        config=_read_json(path.with_name(CONFIG)) if is_folder else {},
        preprocessor={
            **(_read_json(path.with_name(VIDEO_PREPROCESSOR)) if is_folder else {}),
            **(_read_json(path.with_name(PREPROCESSOR)) if is_folder else {}),
        },
    )


def _weights_in(folder: Path) -> Path:
    files = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if files:
        return files[0]
    own = folder if (folder / "encoder.json").is_file() else exported_in(folder)
    if own is not None:
        raise CheckpointError(
            f"{folder}: expected a checkpoint of another project, got one of KineMAE; "
            f"fix: use it directly, {as_override('encoder', own)}"
        )
    raise CheckpointError(f"{folder}: expected {' or '.join(_WEIGHTS)}, got neither; fix: give a file")


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint file or folder, got no such file")
    try:
        return load_file(path) if path.suffix == ".safetensors" else _load_pytorch(path)
    except (OSError, *_DAMAGED) as error:
        # Reading a truncated file may seek to a negative position, which is EINVAL.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        # PyTorch's message continues with the advice to load the file without weights_only.
        text = str(error).partition("\n")[0].partition(" In PyTorch 2.6")[0]
        reason = ": ".join(filter(None, [type(error).__name__, text]))
        raise CheckpointError(
            f"cannot read {path}: expected a checkpoint file of PyTorch or safetensors, got a damaged or "
            f"another file ({reason}); fix: download or save it again"
        ) from error


def _load_pytorch(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    if is_zip:  # files of PyTorch before 1.6 are not, and cannot be inspected first
        unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _ALLOWED_GLOBALS.keys()
        if unsafe:
            raise CheckpointError(
                f"{path}: expected tensors and plain values, got {', '.join(sorted(unsafe))}, whose loading "
                "can execute code; fix: if you trust the file, save only its tensors and import that file"
            )
    with torch.serialization.safe_globals(list(_ALLOWED_GLOBALS.values())):
        # Mapped, since official files contain a predictor and an optimizer, which are not read then.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _unwrap(loaded: Any, path: Path, key: str | None) -> Tensors:
    """Return the tensors by name, without their container and without prefixes."""
    entries = loaded if isinstance(loaded, dict) else {}
    containers = [name for name in _CONTAINERS if isinstance(entries.get(name), dict)]
    if key is not None and not isinstance(entries.get(key), dict):
        raise CheckpointError(
            f"{path}: expected an entry {key}, got {', '.join(containers) or 'none with tensors'}; "
            "fix: choose one of these, or remove key="
        )
    chosen = key or next(iter(containers), None)
    if len(containers) > 1:
        log.info("%s: reading %s of %s; key= chooses another", path, chosen, ", ".join(containers))
    items = (entries if chosen is None else entries[chosen]).items()
    named = {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}
    if not named:
        raise CheckpointError(
            f"{path}: expected named tensors at the top or under {', '.join(_CONTAINERS)}, got none"
        )
    tensors = {_without_prefixes(name): value for name, value in named.items()}
    if len(tensors) < len(named):
        raise CheckpointError(f"{path}: expected unique names, got names that differ only by a prefix")
    return tensors


def _without_prefixes(name: str) -> str:
    while prefix := next((each for each in _PREFIXES if name.startswith(each)), None):
        name = name.removeprefix(prefix)
    return name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
