"""How big a model is: the named sizes, and the config keys `model.*` that choose and bend one.

Encoders are VideoMAE's (arXiv 2203.12602, 2303.16727). Decoders are the narrow ones of its scripts, four
blocks deep as VideoMAE V2 has them at every size; V2's width of 512, not V1's 640, for huge, because
heads of 64 are what fused attention is fastest with.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from kinemae.data_tools.components import Component
from kinemae.data_tools.config import require
from kinemae.pretrain.model.attention.base import build_attention
from kinemae.pretrain.model.tokens import COLOURS, MEAN, STD, Patch


def _check_width(width: int, heads: int, key: str) -> None:
    # 6: the positions need a sine and a cosine for each of three axes.
    if width < 6 or width % 2 or heads < 1 or width % heads:
        raise ValueError(
            f"{key} must be an even number of at least 6 that the heads divide, got {width} for {heads} heads"
        )


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """AllTokens that fixes the encoder's parameters.

    Attributes:
        patch: size of a patch in (frames, pixels, pixels).
        attention: a part of `model/attention`.
        positions: a part of `model/positions`.
        qk_norm: whether queries and keys are normed; see `SelfAttention`.
        layer_scale: where the learned weights of the branches begin; None for none. See `Block`.
        registers: tokens without a place that are learned and dropped at the end (arXiv 2309.16588).
        run_lengths: how many lengths of runs are embedded, longer ones as the longest; 0 for none.
        scorer: whether it scores its tokens by learning (`pruning/learned.py`).
        final_norm: whether tokens are normed at the end. Official fine-tuned files have none.
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
        """P, the values of one RGB patch."""
        return self.patch[0] * self.patch[1] * self.patch[2] * COLOURS


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """AllTokens that fixes the decoder's parameters but what it predicts.

    Its MLP is four times as wide as itself; blocks are otherwise like the encoder's.

    Attributes:
        attention: a part of `model/attention`, for the self decoder.
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
        predict_ratio: the share of a clip's hidden tokens that is predicted.
        predict: which of them: "random", or "running_cell" (arXiv 2303.16727, section 3.2).
        attention: the encoder's kind of attention, a part of `model/attention`.
        decoder_attention: the self decoder's.
        positions: how tokens say where they stand, in encoder and decoder: a part of `model/positions`.
        patch_frames, patch_size: size of a patch in frames and pixels; the size's own where not set.
        width, depth, heads: bend the encoder; without `heads` they keep their width. The MLP keeps its ratio.
        decoder_width, decoder_depth, decoder_heads: bend the decoder likewise.
        qk_norm, layer_scale, registers: see `EncoderShape`.
        merge_per_block: tokens that become one with a similar one in each block (`model/merging.py`).
        noise_conditioning: tell the decoder how strong a clip's noise was.
        mean, std: what pixels on a scale of 0 to 1 are normalised by, RGB.
        drop_path: chance that a clip skips a branch of the encoder's last block; less before it.
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
                f"model.decoder_attention={self.decoder_attention.name} needs model.decoder=self: the cross "
                "decoder's queries look at the memory alone"
            )
        build_attention(self.attention)
        check_merging(self.merge_per_block, self.attention, key="model.merge_per_block")
        build_attention(self.decoder_attention, key="model.decoder_attention")
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
            heads=self.heads or _heads(width, encoder.width // encoder.heads),
            mlp_width=width * encoder.mlp_width // encoder.width,
            patch=(frames, side, side),
            attention=self.attention,
            positions=self.positions,
            qk_norm=self.qk_norm,
            layer_scale=self.layer_scale,
            registers=self.registers,
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
    """Refuse to merge tokens where attention goes by their places: a merged token has several.

    Args:
        per_block: tokens to merge in each block.

    Raises:
        ValueError: negative, or merging under an attention that is not joint.
    """
    require(per_block >= 0, key, "be 0 or more", per_block)
    may_merge = per_block == 0 or attention.name == "joint"
    require(may_merge, key, f"be 0 where model.attention is {attention.name}, not joint", per_block)


def _heads(width: int, head_width: int) -> int:
    return max(1, width // head_width)
