"""Model sizes, and the config keys `model.*` that select and override one.

Encoders are VideoMAE's (arXiv 2203.12602, 2303.16727). Decoders have the widths of its scripts and four
blocks, as in VideoMAE V2. The huge decoder has V2's width of 512, not V1's 640, since fused attention is
fastest with heads of 64.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from kinemae.data_tools.components import Component
from kinemae.data_tools.config import require
from kinemae.pretrain.model.attention.base import build_attention
from kinemae.pretrain.model.tokens import COLOURS, MEAN, STD, Patch


def _check_width(width: int, heads: int, key: str) -> None:
    # 6: sine positions need a sine and a cosine for each of three axes.
    if width < 6 or width % 2 or heads < 1 or width % heads:
        raise ValueError(
            f"{key} must be an even number of at least 6 that the heads divide, got {width} for {heads} heads"
        )


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """Architecture of the encoder.

    Attributes:
        patch: size of a patch in (frames, pixels, pixels).
        attention: a component of `model/attention`.
        positions: a component of `model/positions`.
        qk_norm: normalize queries and keys; see `SelfAttention`.
        layer_scale: initial value of layer scale; None for none. See `Block`.
        registers: number of register tokens (arXiv 2309.16588).
        run_lengths: number of embedded run lengths, longer runs count as the longest; 0 for none.
        scorer: whether it has a learned token scorer (`pruning/learned.py`).
        final_norm: norm after the last block. VideoMAE's fine-tuned files have none.
        standardize: scale each clip to one mean and deviation first; see `tokens.standardize`.
        norm: "layer", or "rms" as in InternVideo2, whose `qk_norm` norms all heads together.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    patch: Patch = (2, 16, 16)
    attention: Component = field(default_factory=lambda: Component(name="joint"))
    positions: Component = field(default_factory=lambda: Component(name="sine"))
    qk_norm: bool = False
    layer_scale: float | None = None
    registers: int = 0
    run_lengths: int = 0
    scorer: bool = False
    final_norm: bool = True
    standardize: bool = False
    norm: Literal["layer", "rms"] = "layer"

    def __post_init__(self) -> None:
        _check_width(self.width, self.heads, "model.width")
        if min(self.depth, self.mlp_width, *self.patch) < 1:
            raise ValueError(
                "model.depth, the MLP's width and every side of a patch must be at least 1, got "
                f"{self.depth}, {self.mlp_width} and {self.patch}"
            )
        require(self.registers >= 0, "model.registers", "be 0 or more", self.registers)
        require(
            self.layer_scale is None or self.layer_scale > 0,
            "model.layer_scale",
            "be null or above 0",
            self.layer_scale,
        )

    @property
    def patch_values(self) -> int:
        """P, number of values of an RGB patch."""
        return self.patch[0] * self.patch[1] * self.patch[2] * COLOURS


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Architecture of the decoder. Its MLP is four times as wide as the decoder.

    Attributes:
        attention: a component of `model/attention`, for the self decoder.
    """

    width: int
    depth: int
    heads: int
    attention: Component = field(default_factory=lambda: Component(name="joint"))
    positions: Component = field(default_factory=lambda: Component(name="sine"))

    def __post_init__(self) -> None:
        _check_width(self.width, self.heads, "model.decoder_width")
        if self.depth < 1:
            raise ValueError(f"model.decoder_depth must be at least 1, got {self.depth}")


@dataclass(frozen=True)
class ModelShape:
    """Encoder and decoder of a named size."""

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
        decoder: "cross" (target tokens attend to visible tokens) or "self" (VideoMAE's).
        predict_ratio: fraction of the hidden tokens that is predicted.
        predict: choice of these tokens: "random", or "running_cell" (arXiv 2303.16727, section 3.2).
        attention: attention kind of the encoder, a component of `model/attention`.
        decoder_attention: attention kind of the self decoder.
        positions: position embedding of encoder and decoder, a component of `model/positions`.
        patch_frames, patch_size: patch size in frames and pixels; null for that of `size`.
        width, depth, heads: override the encoder's; null `heads` keeps the head width. The MLP keeps its
            ratio.
        decoder_width, decoder_depth, decoder_heads: likewise for the decoder.
        qk_norm, layer_scale, registers, standardize: see `EncoderShape`.
        merge_per_block: tokens to merge in each block (`model/merging.py`).
        noise_conditioning: give the decoder the noise level of each clip.
        mean, std: normalization of pixels on a scale of 0 to 1, RGB.
        drop_path: drop-path rate of the encoder's last block, growing linearly from 0.
    """

    size: str = "base"
    decoder: Literal["cross", "self"] = "cross"
    predict_ratio: float = 0.5
    predict: Literal["random", "running_cell"] = "random"
    attention: Component = field(default_factory=lambda: Component(name="joint"))
    decoder_attention: Component = field(default_factory=lambda: Component(name="joint"))
    positions: Component = field(default_factory=lambda: Component(name="sine"))
    patch_frames: int | None = None
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    qk_norm: bool = False
    layer_scale: float | None = None
    registers: int = 0
    standardize: bool = False
    merge_per_block: int = 0
    noise_conditioning: bool = False
    mean: list[float] = field(default_factory=lambda: list(MEAN))
    std: list[float] = field(default_factory=lambda: list(STD))
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"model.size must be one of {', '.join(SIZES)}, got {self.size!r}")
        if not 0 < self.predict_ratio <= 1:
            raise ValueError(
                f"model.predict_ratio must lie above 0 and at most at 1, got {self.predict_ratio}"
            )
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"model.drop_path must lie in [0, 1), got {self.drop_path}")
        require(len(self.mean) == COLOURS, "model.mean", "hold a number each for R, G and B", self.mean)
        require(
            len(self.std) == COLOURS and min(self.std) > 0,
            "model.std",
            "hold a number above 0 each for R, G and B",
            self.std,
        )
        if self.decoder == "cross" and self.decoder_attention.name != "joint":
            raise ValueError(
                f"model.decoder_attention: expected joint with model.decoder=cross, got "
                f"{self.decoder_attention.name}; fix: model.decoder=self"
            )
        build_attention(self.attention)
        check_merging(self.merge_per_block, self.attention, key="model.merge_per_block")
        build_attention(self.decoder_attention, key="model.decoder_attention")
        self.shape()  # checks widths and depths

    def shape(self) -> ModelShape:
        """The named size with the overrides applied.

        Raises:
            ValueError: a width that is no multiple of the heads, or a depth or a patch size below 1.
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
            heads=self.heads or _heads(width, encoder.width // encoder.heads),
            mlp_width=width * encoder.mlp_width // encoder.width,
            patch=(frames, side, side),
            attention=self.attention,
            positions=self.positions,
            qk_norm=self.qk_norm,
            layer_scale=self.layer_scale,
            registers=self.registers,
            standardize=self.standardize,
        )
        return ModelShape(encoder, self._decoder(named.decoder))

    def _decoder(self, named: DecoderShape) -> DecoderShape:
        width = named.width if self.decoder_width is None else self.decoder_width
        return DecoderShape(
            width=width,
            depth=named.depth if self.decoder_depth is None else self.decoder_depth,
            heads=self.decoder_heads or _heads(width, named.width // named.heads),
            attention=self.decoder_attention,
            positions=self.positions,
        )


def check_merging(per_block: int, attention: Component, *, key: str) -> None:
    """Check that merging is used with joint attention only: merged tokens have several grid positions.

    Raises:
        ValueError: `per_block` is negative, or above 0 with another attention kind.
    """
    require(per_block >= 0, key, "be 0 or more", per_block)
    may_merge = per_block == 0 or attention.name == "joint"
    require(may_merge, key, f"be 0 where model.attention is {attention.name}, not joint", per_block)


def _heads(width: int, head_width: int) -> int:
    return max(1, width // head_width)
