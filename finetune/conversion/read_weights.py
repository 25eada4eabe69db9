"""Other systems' files of weights: safetensors or PyTorch's, unpacked from whatever they are wrapped in.

Nothing that a file holds is ever run: PyTorch's files are read with `weights_only`.
"""

import argparse
import json
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch.load raises; nothing else of pickle is used
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.overrides import as_override
from kinemae.finetune.conversion.key_rules import Tensors
from kinemae.pretrain.folder_kinds import exported_in

_CONTAINERS = ("model", "module", "state_dict", "model_state")
_PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
# Exceptions that the readers of both formats raise for a damaged file or another format.
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
# Official files keep the parsed command line beside the weights; it is a plain bag of names.
_HARMLESS = {"argparse.Namespace": argparse.Namespace}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What stands in a file or a folder.

    Attributes:
        source: the file of the weights, for messages.
        tensors: by name, without the prefixes of wrappers.
        config: of a folder as transformers writes it, its `config.json`; else empty.
        preprocessor: likewise its `preprocessor_config.json`.
    """

    source: Path
    tensors: Tensors
    config: dict[str, Any]
    preprocessor: dict[str, Any]


def read_weights(path: Path) -> Found:
    """Read a file, or a folder as transformers writes it.

    Raises:
        CheckpointError: it is missing, damaged, unsafe to read, or holds no tensors by name.
    """
    if path.is_dir():
        files = [path / name for name in _WEIGHTS if (path / name).is_file()]
        if not files:
            own = path if (path / "encoder.json").is_file() else exported_in(path)
            if own is not None:
                raise CheckpointError(
                    f"{path}: expected a checkpoint of another project, got one of KineMAE; "
                    f"fix: use it as it is, {as_override('encoder', own)}"
                )
            raise CheckpointError(f"no weights in {path}: expected {' or '.join(_WEIGHTS)}, or give a file")
        path = files[0]
    tensors = _read_file(path)
    is_of_folder = path.name in _WEIGHTS
    return Found(
        source=path,
        tensors=tensors,
        config=_read_json(path.with_name(CONFIG)) if is_of_folder else {},
        preprocessor=_read_json(path.with_name(PREPROCESSOR)) if is_of_folder else {},
    )


def _read_file(path: Path) -> Tensors:
    if not path.is_file():
        raise CheckpointError(f"no file at {path}")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else _load_pytorch(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except _DAMAGED as error:
        first = (
            str(error).partition("\n")[0].partition(" In PyTorch 2.6")[0]
        )  # then advice to run what it holds
        reason = ": ".join(filter(None, [type(error).__name__, first]))
        raise CheckpointError(
            f"cannot read {path}: expected a checkpoint file of PyTorch or safetensors, got a damaged or "
            f"another file ({reason}); fix: download or save it again"
        ) from error
    return _unwrapped(loaded, path)


def _load_pytorch(path: Path) -> Any:
    if zipfile.is_zipfile(path):  # files of PyTorch before 1.6 are not, and cannot be looked through first
        unsafe = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _HARMLESS.keys())
        if unsafe:
            raise CheckpointError(
                f"{path} is not read: besides tensors it holds {', '.join(unsafe)}, and building such "
                "things can run code; where you trust it, save its tensors alone and import that file"
            )
    with torch.serialization.safe_globals(list(_HARMLESS.values())):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(loaded: Any, path: Path) -> Tensors:
    """The tensors by name, out of their container and without prefixes."""
    for container in _CONTAINERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(container), dict):
            loaded = loaded[container]
            break
    tensors = {
        name: value
        for name, value in (loaded.items() if isinstance(loaded, dict) else ())
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors by name, neither bare nor under {', '.join(_CONTAINERS)}"
        )
    bare = {_bare(name): value for name, value in tensors.items()}
    if len(bare) < len(tensors):
        raise CheckpointError(f"{path} holds some tensors twice, under names that differ by a prefix alone")
    return bare


def _bare(name: str) -> str:
    """A tensor's name without the prefixes that wrappers put before it."""
    while prefix := next((one for one in _PREFIXES if name.startswith(one)), None):
        name = name.removeprefix(prefix)
    return name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object, got {type(content).__name__}")
    return content
