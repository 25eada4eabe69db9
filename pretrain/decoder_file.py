"""The exported decoder: `decoder.safetensors` and `decoder.json`, beside the encoder it was trained with.

Nobody needs it to use an encoder. It is there to go on with pretraining, and for files of other systems
that hold both.
"""

from dataclasses import dataclass, field
from pathlib import Path

from kinemae.data_tools.components import Component
from kinemae.data_tools.config import require
from kinemae.pretrain.model.decoder import DECODERS, Decoder
from kinemae.pretrain.model.sizes import DecoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.serialization import (
    check_weights,
    read_and_build,
    read_weights,
    save_description,
    save_weights,
)

FORMAT = 1
READABLE = range(1, FORMAT + 1)
WEIGHTS = "decoder.safetensors"
DESCRIPTION = "decoder.json"


@dataclass(frozen=True, kw_only=True)
class DecoderDescription:
    """Everything but the weights that is needed to build a decoder again.

    Attributes:
        shape: its parameters, together with the next three.
        kind: "self" or "cross", as in `model.decoder`.
        memory_width: the encoder's width.
        values: P, how many values it predicts of a token.
        noise_conditioned: whether it is told how strong the noise was.
        grid: the tokens of a full clip.
        reference: the grid of its first pretraining, to which positions are resampled.
        target: what it was trained to predict; information, for weights do not depend on it.
    """

    shape: DecoderShape
    kind: str
    memory_width: int
    values: int
    noise_conditioned: bool
    grid: TokenGrid
    reference: TokenGrid
    target: Component = field(default_factory=lambda: Component(name="pixels"))
    format: int = FORMAT

    def __post_init__(self) -> None:
        require(self.kind in DECODERS, "kind", f"be one of {', '.join(DECODERS)}", self.kind)
        require(self.memory_width >= 1, "memory_width", "be at least 1", self.memory_width)
        require(self.values >= 1, "values", "be at least 1", self.values)
        for name, grid in (("grid", self.grid), ("reference", self.reference)):
            require(min(grid.t, grid.h, grid.w) >= 1, name, "be at least 1 along every axis", grid)


def save_decoder(folder: Path, decoder: Decoder, description: DecoderDescription) -> None:
    """Write the decoder in float32; each file is complete or absent, and the description comes last."""
    assert decoder.shape == description.shape, "the description is of another decoder"
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(decoder, folder / WEIGHTS)
    save_description(description, folder / DESCRIPTION)


def load_decoder(folder: Path, *, grid: TokenGrid | None = None) -> tuple[Decoder, DecoderDescription]:
    """Rebuild an exported decoder from its two files.

    Args:
        grid: tokens of a full clip, where they are to be others than described; positions are resampled.

    Raises:
        CheckpointError: a file is missing or unreadable, of another format, or the two do not fit.
    """
    description, shapes = read_and_build(
        folder / DESCRIPTION,
        DecoderDescription,
        build_decoder,
        formats=READABLE,
        what="decoder",
        absent=f"no exported decoder in {folder}: expected {DESCRIPTION} and {WEIGHTS}; a pretraining run "
        "writes them beside its encoder where it has a decoder",
    )
    weights = read_weights(folder / WEIGHTS)
    check_weights(shapes, weights, folder / WEIGHTS)  # before memory is taken
    decoder = build_decoder(description, grid=grid)
    decoder.load_state_dict(weights)
    return decoder, description


def build_decoder(description: DecoderDescription, *, grid: TokenGrid | None = None) -> Decoder:
    """The decoder that is described, with fresh weights, for its own grid or another."""
    return DECODERS[description.kind](
        description.shape,
        grid or description.grid,
        reference=description.reference,
        memory_width=description.memory_width,
        values=description.values,
        noise_conditioned=description.noise_conditioned,
    )


def describe_decoder(decoder: Decoder, *, target: Component) -> DecoderDescription:
    """What a decoder is; `target` is what it learns to predict."""
    (kind,) = (name for name, found in DECODERS.items() if type(decoder) is found)
    return DecoderDescription(
        shape=decoder.shape,
        kind=kind,
        memory_width=decoder.embed.in_features,
        values=decoder.head.out_features,
        noise_conditioned=hasattr(decoder, "noise_embed"),
        grid=decoder.grid,
        reference=decoder.reference,
        target=target,
    )


def has_decoder(folder: Path) -> bool:
    """Whether a decoder was exported there."""
    return (folder / DESCRIPTION).exists()
