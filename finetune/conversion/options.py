"""What other systems' files do not say of a model, and what is taken where nobody says it."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component
from kinemae.data_tools.config import require
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.finetune.conversion.key_rules import Tensors
from kinemae.pretrain.exported_model import DecoderDescription, EncoderDescription
from kinemae.pretrain.model.sizes import DecoderShape, EncoderShape
from kinemae.pretrain.model.tokens import COLOURS, MEAN, STD, TokenGrid

FRAMES = 16
SIZE = 224
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
_DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
"""Attention heads of the published encoders and decoders, by width. The weights do not tell."""

FLAT_SINE = Component(name="flat_sine")
"""VideoMAE's positions; its files leave them out, since they are computed."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Keys of `kinemae finetune import FILE OUT [key=value]`; null takes the file's or the default.

    Attributes:
        frames, size: the clip; 16 frames of 224 x 224 px where the file does not say.
        stride, fps, sampling: which frames; every 4th by default. See `ClipConfig`.
        heads, decoder_heads: of the attention; by the width where null, as the published models have them.
        mean, std: what pixels are normalised by, RGB on a scale of 0 to 1; ImageNet's where the system has
            no other.
        classes: a file with a class a line, in the order of the scores; numbers where null.
    """

    frames: int | None = None
    size: int | None = None
    stride: int | None = None
    fps: float | None = None
    sampling: Literal["dense", "uniform"] = "dense"
    heads: int | None = None
    decoder_heads: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    classes: str | None = None

    def __post_init__(self) -> None:
        for key in ("frames", "size", "heads", "decoder_heads"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, "be at least 1", value)
        for key in ("mean", "std"):
            value = getattr(self, key)
            require(value is None or len(value) == COLOURS, key, "hold a number each for R, G and B", value)
        self.clip(FRAMES, SIZE)  # refuses what does not go together

    def clip(self, frames: int, size: int) -> ClipConfig:
        """The clips that the encoder is for, of so many frames and pixels where the options do not say.

        Raises:
            ValueError: stride, fps and sampling do not go together.
        """
        return ClipConfig(
            frames=self.frames or frames,
            size=self.size or size,
            stride=ClipConfig().stride if self.stride is None else self.stride,
            fps=self.fps,
            sampling=self.sampling,
        )

    def class_names(self, count: int, *, known: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The classes of a head with so many scores.

        Args:
            known: what the file itself calls them; empty where it does not.

        Raises:
            ValueError: `classes` cannot be read, or holds another number of names, or one twice.
        """
        if self.classes is None:
            return known or tuple(map(str, range(count)))
        try:
            lines = Path(self.classes).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"classes: cannot read {self.classes}: {error}") from error
        names = tuple(line.strip() for line in lines if line.strip())
        if len(names) != count or len(set(names)) != count:
            raise ValueError(
                f"classes: {self.classes} must hold {count} different names, one a line, got {len(names)} "
                f"({len(set(names))} different ones)"
            )
        return names

    def head_count(self, width: int, *, known: int | None = None) -> int:
        """Attention heads of the encoder; `known` is what the file says.

        Raises:
            ValueError: nobody says.
        """
        return _some_heads("heads", width, self.heads or known or usual_heads(width))

    def describe(
        self,
        shape: EncoderShape,
        *,
        known_clip: tuple[int, int] | None = None,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
        trained_by: dict[str, Any],
    ) -> EncoderDescription:
        """The description of an encoder; the options come over what the file says.

        Args:
            known_clip: frames and size of its pretraining, where the file says; for other clips positions
                are resampled. Else the options say, and what they do not is guessed.

        Raises:
            ValueError: the clip is not a whole number of patches.
        """
        clip = self.clip(*(known_clip or (FRAMES, SIZE)))
        grid = TokenGrid.of(clip.frames, clip.size, shape.patch)
        return EncoderDescription(
            shape=shape,
            grid=grid,
            reference=TokenGrid.of(*known_clip, shape.patch) if known_clip else grid,
            frames=clip.frames,
            stride=clip.stride,
            size=clip.size,
            fps=clip.fps,
            sampling=clip.sampling,
            mean=tuple(self.mean or mean),
            std=tuple(self.std or std),
            trained_by={
                **trained_by,
                "options": {key: v for key, v in asdict(self).items() if v is not None},
            },
        )

    def describe_decoder(
        self, ours: Tensors, encoder: EncoderDescription, *, heads: int | None = None
    ) -> DecoderDescription:
        """The description of VideoMAE's decoder, from its tensors under our names.

        Args:
            heads: what the file says.

        Raises:
            ValueError: nobody says how many heads.
        """
        width = len(ours["embed.weight"])
        heads = self.decoder_heads or heads or _DECODER_HEADS.get(width)
        return DecoderDescription(
            shape=DecoderShape(
                width=width,
                depth=depth_of(ours, "blocks."),
                heads=_some_heads("decoder_heads", width, heads),
                positions=FLAT_SINE,
            ),
            kind="self",
            memory_width=encoder.shape.width,
            values=len(ours["head.weight"]),
            noise_conditioned=False,
            grid=encoder.grid,
            reference=encoder.reference,
            target=Component(name="pixels", args={"normalise": "channel"}),
        )


def usual_heads(width: int) -> int | None:
    """How many attention heads published encoders of a width have."""
    return _HEADS.get(width)


def measure(
    tensors: Tensors,
    *,
    kernel: str,
    blocks: str,
    expand: str,
    source: object,
) -> dict[str, Any]:
    """What the tensors tell of an encoder's or a decoder's shape: width, depth, mlp_width and patch.

    Args:
        kernel: name of the patch embedding's weights.
        blocks: how the blocks' names begin, up to their number.
        expand: name, within a block, of the weights of the MLP's first layer.

    Raises:
        CheckpointError: these tensors are not there, or are no such weights.
    """
    depth = depth_of(tensors, blocks)
    names = (kernel, f"{blocks}0.{expand}")
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(f"{source} lacks {', '.join(missing)}: not a whole model")
    shape = tuple(tensors[kernel].shape)
    if len(shape) != 5 or shape[1] != COLOURS:
        raise CheckpointError(
            f"{source}: {kernel} must be of shape (width, {COLOURS}, frames, height, width), got {shape}"
        )
    return {
        "width": shape[0],
        "depth": depth,
        "mlp_width": len(tensors[names[1]]),
        "patch": shape[2:],
    }


def depth_of(tensors: Tensors, blocks: str) -> int:
    """How many blocks there are whose names begin so."""
    begin = re.compile(re.escape(blocks) + r"(\d+)\.")
    return len({match.group(1) for match in map(begin.match, tensors) if match})


def _some_heads(key: str, width: int, heads: int | None) -> int:
    if heads is None:
        raise ValueError(
            f"{key} must be given for a width of {width}: the weights do not tell how many attention heads "
            f"there are, and no published model has this width; add {key}=..."
        )
    return heads
