"""The encoder: patch embedding and a vision transformer over the visible space-time patches of a clip."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.attention.base import AttentionCache, AttentionPattern, build_attention
from kinemae.pretrain.model.attention_backends import AttentionFn
from kinemae.pretrain.model.blocks import Block, drop_path_weights, init_weights, norm, run_block
from kinemae.pretrain.model.merging import Merging, merging_blocks
from kinemae.pretrain.model.positions.base import build_positions
from kinemae.pretrain.model.scorer import Scorer
from kinemae.pretrain.model.sizes import EncoderShape, check_merging
from kinemae.pretrain.model.token_positions import REGISTER, TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid, normalize, patchify, standardize, take_patches


class Encoder(nn.Module):
    """A vision transformer over space-time patches (arXiv 2203.12602).

    Args:
        shape: architecture.
        grid: the tokens of a full clip.
        reference: the grid of pretraining, from which positions are resampled; None: `grid`.
        drop_path: drop-path rate of the last block in training mode, growing linearly from 0 at the first
            (arXiv 1603.09382).

    Attributes:
        attention_cache: makes the attention functions of a forward pass; replaced to record attention
            (`pretrain/visualize/recording.py`).
    """

    attention_cache: Callable[[TokenPositions, torch.device], Mapping[AttentionPattern, AttentionFn]] = (
        AttentionCache
    )

    def __init__(
        self,
        shape: EncoderShape,
        grid: TokenGrid,
        *,
        reference: TokenGrid | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.shape = shape
        self.grid = grid
        self.reference = reference or grid
        self.drop_path_rates = [drop_path * i / max(shape.depth - 1, 1) for i in range(shape.depth)]
        kind = build_attention(shape.attention)
        self.patterns = [kind.patterns(i) for i in range(shape.depth)]
        self.patch_embed = nn.Linear(shape.patch_values, shape.width)
        self.pos_embed = build_positions(
            shape.positions, width=shape.width, heads=shape.heads, grid=grid, reference=self.reference
        )
        self.blocks = nn.ModuleList(
            Block(
                shape.width,
                shape.heads,
                shape.mlp_width,
                attentions=len(patterns),
                qk_norm=shape.qk_norm,
                layer_scale=shape.layer_scale,
                norm_kind=shape.norm,
            )
            for patterns in self.patterns
        )
        self.norm = norm(shape.width, shape.norm) if shape.final_norm else nn.Identity()
        init_weights(self)
        if shape.registers:
            self.reg_token = nn.Parameter(torch.empty(1, shape.registers, shape.width))
            nn.init.trunc_normal_(self.reg_token, std=0.02)
        if shape.run_lengths:
            # Zero: an encoder trained without run lengths is unchanged at first.
            self.run_length_embed = nn.Parameter(torch.zeros(shape.run_lengths, shape.width))
        if shape.scorer:
            self.scorer = Scorer(shape.width)
        self.merge_per_block = 0

    def patches(
        self,
        clip_BCTHW: Tensor,
        index_BK: Tensor | None = None,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        clip_BK: Tensor | None = None,
    ) -> Tensor:
        """Cut clips into the normalized patches that the encoder embeds, as patches_BKP.

        Args:
            clip_BCTHW: uint8 RGB.
            index_BK, clip_BK: see `take_patches`; None for all patches.
            mean, std: normalization of pixels.
        """
        clip_BCTHW = self.standardized(clip_BCTHW, mean, std)
        if index_BK is None:
            return normalize(patchify(clip_BCTHW, self.shape.patch), mean, std)
        return normalize(take_patches(clip_BCTHW, index_BK, self.shape.patch, clip_BK=clip_BK), mean, std)

    def standardized(self, clip_BCTHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        """Scale each uint8 clip to one mean and deviation if the encoder was trained so."""
        return standardize(clip_BCTHW, mean, std) if self.shape.standardize else clip_BCTHW

    def check_clip(self, clip_BCTHW: Tensor) -> None:
        """Reject clips of another grid, even if the number of tokens is the same.

        Raises:
            ValueError: the grids differ; the message states both sizes.
        """
        frames, height, width = clip_BCTHW.shape[2:]
        sides = zip((self.grid.t, self.grid.h, self.grid.w), self.shape.patch, strict=True)
        expected = tuple(tokens * side for tokens, side in sides)
        if (frames, height, width) != expected:
            raise ValueError(
                f"clip: expected {expected[0]} frames of {expected[1]}x{expected[2]} pixels, got {frames} of "
                f"{height}x{width}; fix: cut such clips, or load the encoder with grid= for other ones"
            )

    def merge_tokens(self, per_block: int, *, key: str = "model.merge_per_block") -> None:
        """Set the number of tokens to merge in each block (`model/merging.py`); 0 for none.

        Raises:
            ValueError: see `check_merging`.
        """
        check_merging(per_block, self.shape.attention, key=key)
        self.merge_per_block = per_block

    def forward(
        self, patches_BKP: Tensor, visible_BK: Tensor | None, draws: ClipRandom | None = None
    ) -> Tensor:
        """Embed and encode the given patches; see `embed` and `encode`."""
        return self.encode(self.embed(patches_BKP, visible_BK), visible_BK, draws)

    def embed(
        self, patches_BKP: Tensor, visible_BK: Tensor | None, run_length_BK: Tensor | None = None
    ) -> Tensor:
        """Embed patches and add positions, as tokens_BKD.

        Args:
            patches_BKP: normalized patches of these tokens.
            visible_BK: grid indices of the tokens; None for all tokens in order.
            run_length_BK: int64 of at least 1, number of slices that each token represents; needs
                `shape.run_lengths`. None: 1 for all tokens.
        """
        x_BKD = self.patch_embed(patches_BKP.to(self.patch_embed.weight.dtype))
        added = self.pos_embed(visible_BK)
        if added is not None:
            x_BKD = x_BKD + added
        if run_length_BK is not None:
            return x_BKD + self.run_length_embed[run_length_BK.clamp(1, self.shape.run_lengths) - 1]
        return x_BKD + self.run_length_embed[0] if self.shape.run_lengths else x_BKD

    def encode(
        self,
        x_BKD: Tensor,
        visible_BK: Tensor | None,
        draws: ClipRandom | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Run the blocks on embedded tokens.

        Args:
            visible_BK: grid indices of the tokens; None for all tokens in order.
            draws: random numbers of the clips; needed in training with drop path.
            lengths: number of tokens of each clip, for packed clips; see `TokenPositions`.

        Returns:
            tokens_BKD after the final norm, in the same order.
        """
        return self.encode_layers(x_BKD, visible_BK, (), draws, lengths=lengths)[0]

    def encode_layers(
        self,
        x_BKD: Tensor,
        visible_BK: Tensor | None,
        layers: Sequence[int],
        draws: ClipRandom | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the blocks, and also return the tokens after some of them.

        Args:
            layers: numbers of blocks, from 0; none of them with merging, which changes the tokens.

        Returns:
            What `encode` returns, and tokens_BKD after each of these blocks, without the final norm.
        """
        positions = TokenPositions(grid=self.grid, index_BN=visible_BK, lengths=lengths)
        x_BND, positions = self._with_registers(x_BKD, positions)
        if self.merge_per_block:
            assert not layers, "the config check refuses it"
            x_BND = self._encode_merging(x_BND, positions, draws)
            return self.norm(_without_registers(x_BND, positions, self.shape.registers)), ()
        attention_fns = self.attention_cache(positions, x_BND.device)
        rotate = self.pos_embed.rotation(positions.indices(x_BND.device))
        chance_BLX = self._drop_path_chances(draws)
        kept: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x_BND = run_block(
                block,
                x_BND,
                [attention_fns[pattern] for pattern in self.patterns[i]],
                rotate,
                self._keep(i, chance_BLX, positions, x_BND),
            )
            if i in layers:
                kept[i] = _without_registers(x_BND, positions, self.shape.registers)
        tokens_BKD = self.norm(_without_registers(x_BND, positions, self.shape.registers))
        return tokens_BKD, tuple(kept[layer] for layer in layers)

    def _encode_merging(self, x_BND: Tensor, positions: TokenPositions, draws: ClipRandom | None) -> Tensor:
        assert positions.lengths is None, "packed clips do not merge: the config check refuses it"
        index_BN = positions.indices(x_BND.device).expand(x_BND.shape[0], -1)
        chance_BLX = self._drop_path_chances(draws)
        return merging_blocks(
            cast("Iterable[Block]", self.blocks),
            x_BND,
            Merging(self.merge_per_block, index_BN, registers=self.shape.registers),
            pos_embed=self.pos_embed,
            keep=lambda block: self._keep(block, chance_BLX, positions, x_BND),
        )

    def _with_registers(self, x_BKD: Tensor, positions: TokenPositions) -> tuple[Tensor, TokenPositions]:
        """Prepend the registers to each clip's tokens."""
        count = self.shape.registers
        if not count:
            return x_BKD, positions
        rows = x_BKD.shape[0]  # len() would fix the number of clips in `torch.export`
        registers_BRD = self.reg_token.to(x_BKD.dtype).expand(rows, -1, -1)
        index_BN = positions.indices(x_BKD.device).expand(rows, -1)
        register_BR = index_BN.new_full((rows, count), REGISTER)
        lengths = None if positions.lengths is None else tuple(length + count for length in positions.lengths)
        index_BN = _before_each_clip(register_BR, index_BN, positions.lengths)
        x_BND = _before_each_clip(registers_BRD, x_BKD, positions.lengths)
        return x_BND, TokenPositions(grid=positions.grid, index_BN=index_BN, lengths=lengths)

    def _drop_path_chances(self, draws: ClipRandom | None) -> Tensor | None:
        """Random numbers of all blocks and branches in one call: a call per block would launch 60 kernels."""
        if not self.training or not any(self.drop_path_rates):
            return None
        assert draws is not None, "drop path in training needs draws"
        return draws.uniform("drop_path", (len(self.blocks), len(self.patterns[0]) + 1))

    def _keep(
        self, i: int, chance_BLX: Tensor | None, positions: TokenPositions, x_BND: Tensor
    ) -> Tensor | None:
        """Drop-path weights of the branches of a block; see `Block.forward`."""
        rate = self.drop_path_rates[i]
        if chance_BLX is None or rate == 0:
            return None
        keep_XB = drop_path_weights(chance_BLX[:, i], rate).to(x_BND.dtype).T
        clip_1N = positions.clips(x_BND.device)
        return keep_XB[:, :, None, None] if clip_1N is None else keep_XB[:, clip_1N][..., None]


def _before_each_clip(first_BR: Tensor, x_BN: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
    """Prepend `first_BR` to the tokens of each clip; any dims may follow."""
    clips = [x_BN] if lengths is None else x_BN.split(list(lengths), dim=1)
    return torch.cat([part for clip in clips for part in (first_BR, clip)], dim=1)


def _without_registers(x_BND: Tensor, positions: TokenPositions, count: int) -> Tensor:
    if not count or positions.lengths is None:
        return x_BND[:, count:]
    return torch.cat([clip[:, count:] for clip in x_BND.split(list(positions.lengths), dim=1)], dim=1)
