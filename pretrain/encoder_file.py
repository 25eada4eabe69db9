"""The exported encoder: `encoder.safetensors` and `encoder.json`, enough to rebuild it, no code."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.config import require
from kinemae.pretrain.folder_kinds import exported_in, kind_of_folder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import COLOURS, MEAN, STD, TokenGrid
from kinemae.pretrain.serialization import (
    check_weights,
    read_and_build,
    read_weights,
    save_description,
    save_weights,
)

FORMAT = 3
READABLE = range(3, FORMAT + 1)
WEIGHTS = "encoder.safetensors"
DESCRIPTION = "encoder.json"


@dataclass(frozen=True, kw_only=True)
class EncoderDescription:
    """Everything but the weights that is needed to use an encoder as it was trained.

    Attributes:
        shape: the encoder's parameters; its patch too.
        grid: the tokens of a full clip.
        reference: the grid of its pretraining, to which positions are resampled.
        frames, stride, size: the clip: how many frames, how far apart, and their height and width in px.
        fps, sampling: where these, and not the stride, say which frames; see `ClipConfig`.
        mean, std: what pixels on a scale of 0 to 1 are normalised by, RGB.
        trained_by: where it comes from, for people: for example the config, the step, the commit.
    """

    shape: EncoderShape
    grid: TokenGrid
    reference: TokenGrid
    frames: int
    stride: int
    size: int
    fps: float | None = None
    sampling: Literal["dense", "uniform"] = "dense"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    trained_by: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        expected = TokenGrid.of(self.frames, self.size, self.shape.patch)
        require(self.grid == expected, "grid", f"be {expected} for such clips and patches", self.grid)
        for name, grid in (("grid", self.grid), ("reference", self.reference)):
            require(min(grid.t, grid.h, grid.w) >= 1, name, "be at least 1 along every axis", grid)
        require(self.stride >= 1, "stride", "be at least 1", self.stride)
        require(self.fps is None or self.fps > 0, "fps", "be null or above 0", self.fps)
        require(len(self.mean) == COLOURS, "mean", "hold a number for each colour", self.mean)
        is_spread = len(self.std) == COLOURS and min(self.std) > 0
        require(is_spread, "std", "hold a number above 0 for each colour", self.std)


def save_encoder(folder: Path, encoder: Encoder, description: EncoderDescription) -> None:
    """Write the encoder in float32; each file is complete or absent, and the description comes last."""
    assert encoder.shape == description.shape, "the description is of another encoder"
    assert encoder.reference == description.reference, "the description is of another encoder"
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(encoder, folder / WEIGHTS)
    save_description(description, folder / DESCRIPTION)


def load_encoder(
    folder: Path, *, drop_path: float = 0.0, grid: TokenGrid | None = None
) -> tuple[Encoder, EncoderDescription]:
    """Rebuild an exported encoder from its two files.

    Args:
        drop_path: for further training; see `Encoder`.
        grid: tokens of a full clip, where they are to be others than described; positions are resampled.

    Returns:
        The encoder, and the description as it stands in the file.

    Raises:
        CheckpointError: a file is missing or unreadable, of another format, or the two do not fit.
    """
    description, shapes = _read(folder)
    weights = read_weights(folder / WEIGHTS)
    check_weights(shapes, weights, folder / WEIGHTS)  # before memory is taken
    encoder = build_encoder(description, drop_path=drop_path, grid=grid)
    encoder.load_state_dict(weights)
    return encoder, description


def build_encoder(
    description: EncoderDescription, *, drop_path: float = 0.0, grid: TokenGrid | None = None
) -> Encoder:
    """The encoder that is described, with fresh weights, for its own grid or another."""
    return Encoder(
        description.shape,
        grid or description.grid,
        reference=description.reference,
        drop_path=drop_path,
    )


def log_resampling(reference: TokenGrid, grid: TokenGrid) -> None:
    """Say in the log where clips make another grid than those that positions were learned on."""
    if grid != reference:
        log.info(
            "positions are resampled: from %s tokens (slices x rows x columns) in pretraining to %s",
            _named(reference),
            _named(grid),
        )


def load_description(folder: Path) -> EncoderDescription:
    """Read what an exported encoder is, without its weights.

    Raises:
        CheckpointError: the file is missing, unreadable, of another format, or describes no encoder.
    """
    return _read(folder)[0]


def _read(folder: Path) -> tuple[EncoderDescription, Encoder]:
    """The description, and the encoder without values."""
    return read_and_build(
        folder / DESCRIPTION,
        EncoderDescription,
        build_encoder,
        formats=READABLE,
        what="encoder",
        absent=f"no exported encoder in {folder} ({kind_of_folder(folder)}): expected {DESCRIPTION} and "
        f"{WEIGHTS}; give {_place_of_encoder(folder)}",
    )


def _place_of_encoder(folder: Path) -> str:
    exported = exported_in(folder)
    return "the folder encoder/ of a run" if exported is None else str(exported)


def _named(grid: TokenGrid) -> str:
    return f"{grid.t}x{grid.h}x{grid.w}"


def check_same_encoder(source: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    """Reject an encoder that is not the one of the config.

    Args:
        source: config key and folder of the encoder, for the message.
        pairs: for each config key its value in the config and in the encoder.

    Raises:
        CheckpointError: names the differences.
    """
    different = [
        f"{key}: config {own}, encoder {other}" for key, (own, other) in pairs.items() if own != other
    ]
    if different:
        raise CheckpointError(
            f"{source}: expected the encoder of the config, got another ({'; '.join(different)}); "
            "fix: set these keys to the encoder's values, or choose another folder"
        )
