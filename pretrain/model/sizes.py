"""How big a model is: the named sizes, and the config keys `model.*` that choose and bend one.

Encoders are VideoMAE's (arXiv 2203.12602, 2303.16727). Decoders are the narrow ones of its scripts, four
blocks deep as VideoMAE V2 has them at every size; V2's width of 512, not V1's 640, for huge, because
heads of 64 are what fused attention is fastest with.
"""

from dataclasses import dataclass, replace
from typing import Literal

from pretrain.model.tokens import COLOURS, Patch


def _check_width(width: int, heads: int, key: str) -> None:
    # 6: the positions need a sine and a cosine for each of three axes.
    if width < 6 or width % 2 or heads < 1 or width % heads:
        raise ValueError(
            f"{key} must be an even number of at least 6 that the heads divide, got {width} for {heads} heads"
        )


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """Everything that fixes the encoder's parameters.

    Attributes:
        patch: size of a patch in (frames, pixels, pixels).
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: Patch = (2, 16, 16)

    def __post_init__(self) -> None:
        _check_width(self.width, self.heads, "model.width")
        if min(self.depth, self.mlp_width, *self.patch) < 1:
            raise ValueError(
                f"model.depth, the MLP's width and every side of a patch must be at least 1, got {self}"
            )

    @property
    def patch_values(self) -> int:
        """P, the values of one RGB patch."""
        return self.patch[0] * self.patch[1] * self.patch[2] * COLOURS


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Width, depth and heads of the decoder; its MLP is four times as wide as itself."""

    width: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        _check_width(self.width, self.heads, "model.decoder_width")
        if self.depth < 1:
            raise ValueError(f"model.decoder_depth must be at least 1, got {self.depth}")


@dataclass(frozen=True)
class ModelShape:
    """A named size: an encoder and the decoder that goes with it."""

    encoder: EncoderShape
    decoder: DecoderShape


SIZES: dict[str, ModelShape] = {
    "tiny": ModelShape(
        EncoderShape(width=96, depth=4, heads=3, mlp_width=384), DecoderShape(width=64, depth=2, heads=2)
    ),
    "small": ModelShape(
        EncoderShape(width=384, depth=12, heads=6, mlp_width=1536), DecoderShape(width=192, depth=4, heads=3)
    ),
    "base": ModelShape(
        EncoderShape(width=768, depth=12, heads=12, mlp_width=3072), DecoderShape(width=384, depth=4, heads=6)
    ),
    "large": ModelShape(
        EncoderShape(width=1024, depth=24, heads=16, mlp_width=4096),
        DecoderShape(width=512, depth=4, heads=8),
    ),
    "huge": ModelShape(
        EncoderShape(width=1280, depth=32, heads=16, mlp_width=5120),
        DecoderShape(width=512, depth=4, heads=8),
    ),
    "giant": ModelShape(
        EncoderShape(width=1408, depth=40, heads=16, mlp_width=6144, patch=(2, 14, 14)),
        DecoderShape(width=512, depth=4, heads=8),
    ),
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Config keys `model.*`.

    Attributes:
        size: a name of `SIZES`.
        decoder: "cross" (wanted queries look at the visible tokens) or "self" (VideoMAE's).
        predict_share: the share of a clip's hidden tokens that is predicted.
        patch_frames, patch_size: size of a patch in frames and pixels; the size's own where not set.
        width, depth: bend the encoder; heads keep their width, the MLP its ratio.
        decoder_width, decoder_depth: bend the decoder likewise.
        drop_path: chance that a clip skips a branch of the encoder's last block; less before it.
    """

    size: str = "base"
    decoder: Literal["cross", "self"] = "cross"
    predict_share: float = 0.5
    patch_frames: int | None = None
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    decoder_width: int | None = None
    decoder_depth: int | None = None
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"model.size must be one of {', '.join(SIZES)}, got {self.size!r}")
        if not 0 < self.predict_share <= 1:
            raise ValueError(
                f"model.predict_share must lie above 0 and at most at 1, got {self.predict_share}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"model.drop_path must lie in [0, 1), got {self.drop_path}")
        self.shape()  # refuses widths and depths that cannot be built

    def shape(self) -> ModelShape:
        """The named size with the overrides applied.

        Raises:
            ValueError: a width that the heads do not divide, or a depth or a patch below 1.
        """
        named = SIZES[self.size]
        encoder = named.encoder
        frames, side, _ = encoder.patch
        width = encoder.width if self.width is None else self.width
        frames = frames if self.patch_frames is None else self.patch_frames
        side = side if self.patch_size is None else self.patch_size
        encoder = replace(
            encoder,
            width=width,
            depth=encoder.depth if self.depth is None else self.depth,
            heads=_heads(width, encoder.width // encoder.heads),
            mlp_width=width * encoder.mlp_width // encoder.width,
            patch=(frames, side, side),
        )
        return ModelShape(encoder, self._decoder(named.decoder))

    def _decoder(self, named: DecoderShape) -> DecoderShape:
        width = named.width if self.decoder_width is None else self.decoder_width
        depth = named.depth if self.decoder_depth is None else self.decoder_depth
        return DecoderShape(width=width, depth=depth, heads=_heads(width, named.width // named.heads))


def _heads(width: int, head_width: int) -> int:
    return max(1, width // head_width)
