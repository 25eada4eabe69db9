"""Exported models: `encoder.safetensors` and `encoder.json`, optionally a decoder. They contain no code.

The decoder is only needed to continue pretraining and for files of other projects that hold both.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.components import Component
from kinemae.data_tools.config import require
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.pretrain.folder_kinds import exported_in, kind_of_folder
from kinemae.pretrain.model.decoder import DECODERS, Decoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import DecoderShape, EncoderShape
from kinemae.pretrain.model.tokens import COLOURS, MEAN, STD, TokenGrid
from kinemae.pretrain.serialization import (
    check_weights,
    read_and_build,
    read_weights,
    save_description,
    save_weights,
)

ENCODER_FORMAT, DECODER_FORMAT = 3, 1
WEIGHTS, DESCRIPTION = "encoder.safetensors", "encoder.json"
DECODER_WEIGHTS, DECODER_DESCRIPTION = "decoder.safetensors", "decoder.json"


@dataclass(frozen=True, kw_only=True)
class EncoderDescription:
    """Description of an exported encoder: architecture, clips and normalization of pixels.

    Attributes:
        shape: architecture of the encoder.
        grid: the tokens of a full clip.
        reference: the grid of its pretraining, from which positions are resampled.
        frames, stride, size: frames of a clip, their distance, and their height and width in px.
        fps, sampling: frame sampling other than by stride; see `ClipConfig`.
        mean, std: normalization of pixels on a scale of 0 to 1, RGB.
        trained_by: information for readers, for example the config, the step and the commit.
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
    format: int = ENCODER_FORMAT

    def __post_init__(self) -> None:
        expected = TokenGrid.of(self.frames, self.size, self.shape.patch)
        require(self.grid == expected, "grid", f"be {expected} for such clips and patches", self.grid)
        _check_grids(self.grid, self.reference)
        require(self.stride >= 1, "stride", "be at least 1", self.stride)
        require(self.fps is None or self.fps > 0, "fps", "be null or above 0", self.fps)
        require(len(self.mean) == COLOURS, "mean", "hold a number for each colour", self.mean)
        is_spread = len(self.std) == COLOURS and min(self.std) > 0
        require(is_spread, "std", "hold a number above 0 for each colour", self.std)

    @property
    def clip(self) -> ClipConfig:
        """The clips of the encoder."""
        return ClipConfig(
            frames=self.frames, stride=self.stride, fps=self.fps, sampling=self.sampling, size=self.size
        )


@dataclass(frozen=True, kw_only=True)
class DecoderDescription:
    """Description of an exported decoder: its architecture.

    Attributes:
        shape, kind, memory_width, values, noise_conditioned: architecture; `kind` as in `model.decoder`, the
            others as in `Decoder`.
        grid: the tokens of a full clip.
        reference: the grid of its first pretraining, from which positions are resampled.
        target: the target of its training; information only, the weights do not depend on it.
    """

    shape: DecoderShape
    kind: str
    memory_width: int
    values: int
    noise_conditioned: bool
    grid: TokenGrid
    reference: TokenGrid
    target: Component = field(default_factory=lambda: Component(name="pixels"))
    format: int = DECODER_FORMAT

    def __post_init__(self) -> None:
        require(self.kind in DECODERS, "kind", f"be one of {', '.join(DECODERS)}", self.kind)
        require(self.memory_width >= 1, "memory_width", "be at least 1", self.memory_width)
        require(self.values >= 1, "values", "be at least 1", self.values)
        _check_grids(self.grid, self.reference)


def _check_grids(grid: TokenGrid, reference: TokenGrid) -> None:
    for name, given in (("grid", grid), ("reference", reference)):
        require(min(given.t, given.h, given.w) >= 1, name, "be at least 1 along every axis", given)


def save_encoder(folder: Path, encoder: Encoder, description: EncoderDescription) -> None:
    """Write an encoder in float32; each file is complete or absent, and the description is written last."""
    assert encoder.shape == description.shape, "the description is of another encoder"
    assert encoder.reference == description.reference, "the description is of another encoder"
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(encoder, folder / WEIGHTS)
    save_description(description, folder / DESCRIPTION)


def save_decoder(folder: Path, decoder: Decoder, description: DecoderDescription) -> None:
    """Write a decoder like `save_encoder`."""
    assert decoder.shape == description.shape, "the description is of another decoder"
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(decoder, folder / DECODER_WEIGHTS)
    save_description(description, folder / DECODER_DESCRIPTION)


def load_encoder(
    folder: Path, *, drop_path: float = 0.0, grid: TokenGrid | None = None
) -> tuple[Encoder, EncoderDescription]:
    """Load an exported encoder.

    Args:
        drop_path: for further training; see `Encoder`.
        grid: the tokens of a full clip if they differ from the description; positions are resampled.

    Returns:
        The encoder, and the description in the file.

    Raises:
        CheckpointError: a file is missing, damaged or of another format, or the two do not match.
    """
    description, meta = _read_encoder(folder)
    weights = read_weights(folder / WEIGHTS)
    check_weights(meta, weights, folder / WEIGHTS)  # before memory is allocated
    encoder = build_encoder(description, drop_path=drop_path, grid=grid)
    if torch.get_default_device().type != "meta":  # where FLOPs are counted, shapes suffice
        encoder.load_state_dict(weights)
    return encoder, description


def load_decoder(folder: Path, *, grid: TokenGrid | None = None) -> tuple[Decoder, DecoderDescription]:
    """Load an exported decoder; see `load_encoder`."""
    description, meta = read_and_build(
        folder / DECODER_DESCRIPTION,
        DecoderDescription,
        build_decoder,
        formats=range(DECODER_FORMAT, DECODER_FORMAT + 1),
        what="decoder",
        absent=f"{folder}: expected {DECODER_DESCRIPTION} and {DECODER_WEIGHTS}, got no exported decoder; "
        "fix: give the folder encoder/ of a pretraining run whose target needs a decoder",
    )
    weights = read_weights(folder / DECODER_WEIGHTS)
    check_weights(meta, weights, folder / DECODER_WEIGHTS)
    decoder = build_decoder(description, grid=grid)
    decoder.load_state_dict(weights)
    return decoder, description


def load_description(folder: Path) -> EncoderDescription:
    """Read the description of an exported encoder without its weights.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or describes no valid encoder.
    """
    return _read_encoder(folder)[0]


def with_clip(
    description: EncoderDescription,
    *,
    frames: int | None = None,
    size: int | None = None,
    **changes: Any,
) -> EncoderDescription:
    """Describe the same encoder for other clips, to which its positions are resampled.

    Args:
        frames, size: of a clip; None for those of the description.
        changes: other fields.

    Raises:
        ValueError: the clip is not a whole number of patches.
    """
    frames = description.frames if frames is None else frames
    size = description.size if size is None else size
    grid = TokenGrid.of(frames, size, description.shape.patch)
    return replace(description, frames=frames, size=size, grid=grid, **changes)


def build_encoder(
    description: EncoderDescription, *, drop_path: float = 0.0, grid: TokenGrid | None = None
) -> Encoder:
    """Build the described encoder with initial weights, for its own grid or another."""
    return Encoder(
        description.shape, grid or description.grid, reference=description.reference, drop_path=drop_path
    )


def build_decoder(description: DecoderDescription, *, grid: TokenGrid | None = None) -> Decoder:
    """Build the described decoder with initial weights, for its own grid or another."""
    return DECODERS[description.kind](
        description.shape,
        grid or description.grid,
        reference=description.reference,
        memory_width=description.memory_width,
        values=description.values,
        noise_conditioned=description.noise_conditioned,
    )


def describe_decoder(decoder: Decoder, *, target: Component) -> DecoderDescription:
    """The description of a decoder; `target` is the target of its training."""
    (kind,) = (name for name, decoder_class in DECODERS.items() if type(decoder) is decoder_class)
    return DecoderDescription(
        shape=decoder.shape,
        kind=kind,
        memory_width=decoder.embed.in_features,
        values=decoder.head.out_features,
        noise_conditioned=decoder.noise_embed is not None,
        grid=decoder.grid,
        reference=decoder.reference,
        target=target,
    )


def has_decoder(folder: Path) -> bool:
    """Check whether the folder holds an exported decoder."""
    return (folder / DECODER_DESCRIPTION).exists()


def log_resampling(reference: TokenGrid, grid: TokenGrid) -> None:
    """Log that positions are resampled if the grid is not that of pretraining."""
    if grid != reference:
        shapes = (f"{each.t}x{each.h}x{each.w}" for each in (reference, grid))
        log.info(
            "positions are resampled: from %s tokens (slices x rows x columns) in pretraining to %s", *shapes
        )


def _read_encoder(folder: Path) -> tuple[EncoderDescription, Encoder]:
    """The description, and the encoder on the meta device."""
    exported = exported_in(folder)
    return read_and_build(
        folder / DESCRIPTION,
        EncoderDescription,
        build_encoder,
        formats=range(ENCODER_FORMAT, ENCODER_FORMAT + 1),
        what="encoder",
        absent=f"{folder}: expected {DESCRIPTION} and {WEIGHTS}, got {kind_of_folder(folder)}; fix: give "
        f"{'the folder encoder/ of a run' if exported is None else exported}",
    )


def check_same_encoder(source: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    """Check that an exported encoder is the one of the config.

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
