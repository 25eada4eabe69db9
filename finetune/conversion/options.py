"""Options of `kinemae finetune import`, for facts that a checkpoint does not contain."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component
from kinemae.data_tools.config import require
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.finetune.conversion.key_rules import Tensors, count_blocks
from kinemae.pretrain.exported_model import DecoderDescription, EncoderDescription
from kinemae.pretrain.model.sizes import DecoderShape, EncoderShape
from kinemae.pretrain.model.tokens import COLOURS, MEAN, STD, Patch, TokenGrid

FRAMES = 16
SIZE = 224

# Attention heads of the published models, by width; weights do not determine them.
PUBLISHED_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
_PUBLISHED_DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}

# Clips of published models with a table of positions.
_TABLE_FRAMES, _TABLE_SIZES = (4, 8, 16, 32), (224, 336, 384, 448)

FLAT_SINE = Component(name="flat_sine")
"""VideoMAE's positional embedding, which is computed and not in its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Keys of `kinemae finetune import FILE OUT [key=value]`; null is the checkpoint's value or the default.

    Attributes:
        key: the entry of a PyTorch file that holds the tensors, for example encoder or target_encoder.
        frames, size: the clip; by default 16 frames of 224 x 224 pixels.
        stride, fps, sampling: see `ClipConfig`; by default every 4th frame.
        patch_frames: frames of a patch, for image models only; by default 2.
        heads, decoder_heads: attention heads; by default those of the published model of the same width.
        mean, std: normalization of pixels, RGB on a scale of 0 to 1; by default that of the system.
        classes: a file with one class name per line, in the order of the scores; by default numbers.
    """

    key: str | None = None
    frames: int | None = None
    size: int | None = None
    stride: int | None = None
    fps: float | None = None
    sampling: Literal["dense", "uniform"] | None = None
    patch_frames: int | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    classes: str | None = None

    def __post_init__(self) -> None:
        for key in ("frames", "size", "patch_frames", "heads", "decoder_heads"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, "be at least 1", value)
        for key in ("mean", "std"):
            value = getattr(self, key)
            require(value is None or len(value) == COLOURS, key, "hold a number each for R, G and B", value)
        self.clip(ClipConfig())  # rejects contradictory stride, fps and sampling

    def clip(self, known: ClipConfig) -> ClipConfig:
        """Return the clip; `known` holds its defaults.

        Raises:
            ValueError: contradictory stride, fps and sampling.
        """
        clip = replace(known, frames=self.frames or known.frames, size=self.size or known.size)
        if self.stride is None and self.fps is None and self.sampling is None:
            return clip
        return replace(
            clip,
            stride=ClipConfig().stride if self.stride is None else self.stride,
            fps=self.fps,
            sampling=self.sampling or "dense",
        )

    def table_clip(self, count: int, patch: Patch, source: object) -> ClipConfig:
        """Return the clip of a table of `count` positions: of `frames` and `size`, or of a published model.

        Raises:
            CheckpointError: no such clip has as many positions.
        """
        given = [(self.frames, self.size)] if self.frames and self.size else []
        for frames, size in [*given, *((frames, size) for size in _TABLE_SIZES for frames in _TABLE_FRAMES)]:
            if count == frames // patch[0] * (size // patch[1]) * (size // patch[2]):
                return ClipConfig(frames=frames, size=size, sampling="uniform")
        raise CheckpointError(
            f"{source}: expected the positions of {', '.join(map(str, _TABLE_FRAMES))} frames of "
            f"{', '.join(map(str, _TABLE_SIZES))} pixels, got {count}; fix: frames= and size= of its training"
        )

    def class_names(self, count: int, *, known: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the names of a head's classes.

        Args:
            known: names in the checkpoint; empty if it has none.

        Raises:
            ValueError: `classes` is unreadable, or does not contain `count` different names.
        """
        if self.classes is None:
            return known or tuple(map(str, range(count)))
        try:
            lines = Path(self.classes).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"classes={self.classes}: expected a text file, got an error: {error}"
            ) from error
        names = tuple(line.strip() for line in lines if line.strip())
        if len(names) != count or len(set(names)) != count:
            raise ValueError(
                f"classes={self.classes}: expected {count} different names, one per line, got {len(names)} "
                f"({len(set(names))} different)"
            )
        return names

    def num_heads(self, width: int, *, known: int | None = None) -> int:
        """Return the encoder's attention heads; `known` is the number in the checkpoint's config.

        Raises:
            ValueError: unknown number.
        """
        return _require_heads("heads", width, self.heads or known or PUBLISHED_HEADS.get(width))

    def describe(
        self,
        shape: EncoderShape,
        *,
        known_clip: ClipConfig | None = None,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
        trained_by: dict[str, Any],
    ) -> EncoderDescription:
        """Describe an encoder. The options override `known_clip`, `mean` and `std`.

        Args:
            known_clip: the clip of the pretraining, if it is known. For other clips positions are resampled.

        Raises:
            ValueError: the clip is not a whole number of patches.
        """
        clip = self.clip(known_clip or ClipConfig(frames=FRAMES, size=SIZE))
        grid = TokenGrid.of(clip.frames, clip.size, shape.patch)
        options = {key: value for key, value in asdict(self).items() if value is not None}
        return EncoderDescription(
            shape=shape,
            grid=grid,
            reference=TokenGrid.of(known_clip.frames, known_clip.size, shape.patch) if known_clip else grid,
            frames=clip.frames,
            stride=clip.stride,
            size=clip.size,
            fps=clip.fps,
            sampling=clip.sampling,
            mean=tuple(self.mean or mean),
            std=tuple(self.std or std),
            trained_by={**trained_by, "options": options},
        )

    def describe_decoder(
        self, tensors: Tensors, encoder: EncoderDescription, *, heads: int | None = None
    ) -> DecoderDescription:
        """Describe VideoMAE's decoder from its converted tensors.

        Args:
            heads: number in the checkpoint's config.

        Raises:
            ValueError: unknown number of heads.
        """
        width = len(tensors["embed.weight"])
        heads = self.decoder_heads or heads or _PUBLISHED_DECODER_HEADS.get(width)
        return DecoderDescription(
            shape=DecoderShape(
                width=width,
                depth=count_blocks(tensors, "blocks"),
                heads=_require_heads("decoder_heads", width, heads),
                positions=FLAT_SINE,
            ),
            kind="self",
            memory_width=encoder.shape.width,
            values=len(tensors["head.weight"]),
            noise_conditioned=False,
            grid=encoder.grid,
            reference=encoder.reference,
            target=Component(name="pixels", args={"normalize": "channel"}),
        )


def _require_heads(key: str, width: int, heads: int | None) -> int:
    if heads is None:
        raise ValueError(
            f"{key}: expected the number of attention heads, got null; fix: add {key}=..., since no "
            f"published model has the width {width} and weights do not determine the number"
        )
    return heads
