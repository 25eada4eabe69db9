"""The exported encoder: `encoder.safetensors` and `encoder.json`, enough to rebuild it, no code."""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_tools.command import CheckpointError
from pretrain.model.encoder import Encoder
from pretrain.model.sizes import EncoderShape
from pretrain.model.tokens import MEAN, STD, TokenGrid

FORMAT = 2
WEIGHTS = "encoder.safetensors"
DESCRIPTION = "encoder.json"
LISTED = 5
"""How many names of tensors an error lists."""


@dataclass(frozen=True, kw_only=True)
class EncoderDescription:
    """Everything but the weights that is needed to use an encoder as it was trained.

    Attributes:
        shape: the encoder's parameters; its patch too.
        grid: the tokens of a full clip.
        frames, stride, size: the clip: how many frames, how far apart, and their height and width in px.
        fps, sampling: where these, and not the stride, say which frames; see `ClipConfig`.
        mean, std: what pixels on a scale of 0 to 1 are normalised by, RGB.
        trained_by: where it comes from, for people: for example the config, the step, the commit.
    """

    shape: EncoderShape
    grid: TokenGrid
    frames: int
    stride: int
    size: int
    fps: float | None = None
    sampling: Literal["dense", "uniform"] = "dense"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    trained_by: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def save_encoder(folder: Path, encoder: Encoder, description: EncoderDescription) -> None:
    """Write the encoder in float32; each file is complete or absent, and the description comes last."""
    assert encoder.shape == description.shape, "the description is of another encoder"
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(encoder, folder / WEIGHTS)
    partial = folder / f"{DESCRIPTION}.partial"
    partial.write_text(json.dumps(asdict(description), indent=2) + "\n", encoding="utf-8")
    _publish(partial, folder / DESCRIPTION)


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's state in float32 as safetensors, complete or absent."""
    weights = {name: value.detach().float().cpu().contiguous() for name, value in module.state_dict().items()}
    partial = path.with_name(f"{path.name}.partial")
    save_file(weights, partial)
    _publish(partial, path)


def load_encoder(folder: Path, *, drop_path: float = 0.0) -> tuple[Encoder, EncoderDescription]:
    """Rebuild an exported encoder from its two files.

    Args:
        drop_path: for further training; see `Encoder`.

    Raises:
        CheckpointError: a file is missing or unreadable, of another format, or the two do not fit.
    """
    description = load_description(folder)
    weights = _read_weights(folder / WEIGHTS)
    with torch.device("meta"):  # count and compare before memory is taken
        expected = {
            name: value.shape
            for name, value in Encoder(description.shape, description.grid).named_parameters()
        }
    _compare(expected, weights, folder)
    encoder = Encoder(description.shape, description.grid, drop_path=drop_path)
    encoder.load_state_dict(weights)
    return encoder, description


def load_description(folder: Path) -> EncoderDescription:
    """Read what an exported encoder is, without its weights.

    Raises:
        CheckpointError: the file is missing, unreadable, of another format, or describes no encoder.
    """
    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no exported encoder in {folder}: expected {DESCRIPTION} and {WEIGHTS}; "
            "give the folder encoder/ of a run"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; export the encoder again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        given = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise CheckpointError(f"{path} is of format {given!r}, this version reads format {FORMAT}")
    try:
        return _description(found)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} does not describe an encoder: {error}") from error


def _description(found: dict[str, Any]) -> EncoderDescription:
    _check_keys(EncoderDescription, found, "the file")
    shape = _numbers(EncoderShape, found["shape"], "shape")
    grid = _numbers(TokenGrid, found["grid"], "grid")
    parts = {
        "shape": EncoderShape(**shape | {"patch": tuple(shape["patch"])}),
        "grid": TokenGrid(**grid),
        "mean": tuple(map(float, found["mean"])),
        "std": tuple(map(float, found["std"])),
    }
    description = EncoderDescription(**found | parts)
    expected = TokenGrid.of(description.frames, description.size, description.shape.patch)
    if description.grid != expected:
        raise ValueError(f"grid must be {expected} for such clips and patches, got {description.grid}")
    return description


def _numbers(kind: type, found: Any, name: str) -> dict[str, Any]:
    """Check that a record holds exactly the class's fields, each a whole number or a list of such."""
    _check_keys(kind, found, name)
    for key, value in found.items():
        if not all(type(number) is int for number in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{name}.{key} must be a whole number or a list of such, got {value!r}")
    return found


def _check_keys(kind: type, found: Any, name: str) -> None:
    expected = {known.name for known in fields(kind)}
    given = set(found) if isinstance(found, dict) else set()
    if given != expected:
        wrong = ", ".join(f"missing {key}" for key in sorted(expected - given))
        extra = ", ".join(f"unknown {key}" for key in sorted(given - expected))
        raise ValueError(f"wrong keys in {name}: {'; '.join(filter(None, [wrong, extra]))}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"no weights at {path}: export the encoder again") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; the file is damaged, export the encoder again"
        ) from error


def _compare(expected: dict[str, torch.Size], weights: dict[str, Tensor], folder: Path) -> None:
    """Refuse weights that are not exactly the described encoder's, naming the tensors."""
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in weights and weights[name].shape != shape
    ]
    wrong = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "mis-shaped": shapes,
    }
    if any(wrong.values()):
        parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in wrong.items() if names]
        raise CheckpointError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {', '.join(parts)} tensors")


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _publish(partial: Path, final: Path) -> None:
    """Give a finished file its name, after its bytes are on the disk."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    # safetensors writes for the owner alone; the folder says who may enter, as for every other file.
    partial.chmod(partial.parent.stat().st_mode & 0o666)
    os.replace(partial, final)
