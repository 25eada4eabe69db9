"""From clips to the encoder's tokens: all of them, a fixed share, or as many as each clip needs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.yuv_to_rgb import luma_of
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.packing import Packing, share_of, top_tokens
from kinemae.pretrain.model.tokens import normalise, patchify, take_patches
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.pruning.none import NoPruning


class Features(NamedTuple):
    """What the encoder makes of clips.

    Attributes:
        tokens_BND: the tokens that were kept, after the last norm.
        weight_BN: 1 for a token, 0 for padding behind a clip that keeps fewer; None: no padding.
        threshold_loss_B: of the scorer's threshold, where a share is kept by learned scores; see `Scorer`.
    """

    tokens_BND: Tensor
    weight_BN: Tensor | None = None
    threshold_loss_B: Tensor | None = None

    @property
    def kept_B(self) -> Tensor:
        """How many tokens each clip kept, float32."""
        if self.weight_BN is not None:
            return self.weight_BN.float().sum(dim=1)
        clips, tokens = self.tokens_BND.shape[:2]
        return self.tokens_BND.new_full((clips,), tokens, dtype=torch.float32)

    @staticmethod
    def join(parts: Sequence["Features"]) -> tuple[Tensor, Tensor | None]:
        """The tokens and weights of several batches of clips in one."""
        longest = max(part.tokens_BND.shape[1] for part in parts)
        short = [longest - part.tokens_BND.shape[1] for part in parts]
        tokens = [functional.pad(part.tokens_BND, (0, 0, 0, n)) for part, n in zip(parts, short, strict=True)]
        weights = [
            functional.pad(part.weight_BN, (0, n))
            for part, n in zip(parts, short, strict=True)
            if part.weight_BN is not None
        ]
        return torch.cat(tokens), torch.cat(weights) if weights else None


class FeatureReader:
    """Runs an encoder on clips under a pruning.

    Args:
        mean, std: what pixels on a scale of 0 to 1 are normalised by, RGB.
    """

    def __init__(
        self, encoder: Encoder, pruning: Pruning, *, mean: tuple[float, ...], std: tuple[float, ...]
    ):
        self.encoder = encoder
        self.pruning = pruning
        self.mean = mean
        self.std = std

    def read(self, clip_BCTHW: Tensor, draws: ClipRandom | None) -> Features:
        """Encode clips, uint8 RGB; `draws` is for drop path in training.

        Raises:
            ValueError: clips of another size than the encoder's.
        """
        self.encoder.check_clip(clip_BCTHW)
        if self.pruning.is_learned:
            return self._by_score(clip_BCTHW, draws)
        if isinstance(self.pruning, NoPruning):
            return Features(self.encoder.encode(self._embed_all(clip_BCTHW), None, draws))
        return self._by_content(clip_BCTHW, draws)

    def _by_content(self, clip_BCTHW: Tensor, draws: ClipRandom | None) -> Features:
        """Only the patches that the pixels say are worth it are even cut out."""
        worth = self.pruning.weigh(luma_of(clip_BCTHW), self.encoder.shape.patch)
        if self.pruning.keep is None:
            packing = Packing.of(worth.is_kept_BN, worth.score_BN)
            run_1L = None if worth.run_BN is None else packing.pack(worth.run_BN)
            x_1LD = self._embed(clip_BCTHW, packing.index_1L, run_1L, clip_BK=packing.clip_1L)
            return self._packed(x_1LD, packing, draws)
        count = share_of(worth.score_BN.shape[1], self.pruning.keep)
        index_BK = top_tokens(worth.score_BN, count)
        run_BK = None if worth.run_BN is None else worth.run_BN.gather(1, index_BK)
        x_BKD = self._embed(clip_BCTHW, index_BK, run_BK)
        return Features(self.encoder.encode(x_BKD, index_BK, draws))

    def _by_score(self, clip_BCTHW: Tensor, draws: ClipRandom | None) -> Features:
        """All are embedded, and the encoder's scorer chooses."""
        scorer, x_BND = self.encoder.scorer, self._embed_all(clip_BCTHW)
        if self.pruning.keep is not None:
            chosen = scorer.choose(x_BND, self.pruning.keep)
            tokens_BKD = self.encoder.encode(chosen.x_BKD, chosen.place_BK, draws)
            return Features(tokens_BKD, threshold_loss_B=chosen.threshold_loss_B)
        score_BN = scorer(x_BND)
        packing = Packing.of(score_BN.detach() > scorer.threshold_1.detach(), score_BN.detach())
        gated_BND = x_BND * scorer.gate(score_BN, x_BND.dtype)
        return self._packed(packing.pack(gated_BND), packing, draws)

    def _packed(self, x_1LD: Tensor, packing: Packing, draws: ClipRandom | None) -> Features:
        encoded_1LD = self.encoder.encode(x_1LD, packing.index_1L, draws, lengths=packing.lengths)
        return Features(*packing.unpack(encoded_1LD))

    def _embed_all(self, clip_BCTHW: Tensor) -> Tensor:
        patches_BNP = normalise(patchify(clip_BCTHW, self.encoder.shape.patch), self.mean, self.std)
        return self.encoder.embed(patches_BNP, None)

    def _embed(
        self,
        clip_BCTHW: Tensor,
        index_BK: Tensor,
        run_BK: Tensor | None,
        *,
        clip_BK: Tensor | None = None,
    ) -> Tensor:
        taken_BKP = take_patches(clip_BCTHW, index_BK, self.encoder.shape.patch, clip_BK=clip_BK)
        patches_BKP = normalise(taken_BKP, self.mean, self.std)
        return self.encoder.embed(patches_BKP, index_BK, run_BK)
