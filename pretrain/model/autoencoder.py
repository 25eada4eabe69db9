"""The masked autoencoder: encoder, decoder, noise and target, from a batch to losses."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.model.blocks import init_weights
from kinemae.pretrain.model.decoder import DECODERS, Decoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.scorer import add_gradient_of
from kinemae.pretrain.model.sigreg import Total, one_process
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid, gather_tokens, normalize, take_patches
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.targets.base import Prediction, Target, TargetInputs, ViewInputs


class EncoderInputs(NamedTuple):
    """Inputs of the encoder for a batch, with a row for each mask; those of a clip follow one another.

    Attributes:
        patches_BKP: visible patches, normalized, with noise.
        visible_BK: their grid indices.
        added_BKP: noise added to the patches; None unless the target needs it.
        level_B: noise level.
        draws: random numbers of the rows.
    """

    patches_BKP: Tensor
    visible_BK: Tensor
    added_BKP: Tensor | None
    level_B: Tensor
    draws: ClipRandom


class MaskedAutoencoder(nn.Module):
    """Predicts the target tokens of a clip from its visible tokens; noise is added to the encoder's input
    only.

    Args:
        decoder: None if the target concerns visible tokens only.
        clips: number of clips in the whole run, from which a clip's progress in the run follows.
        mean, std: normalization of pixels.
        keep: fraction of the visible tokens that the encoder's scorer keeps; None without a learned scorer.

    Attributes:
        total: sum over all processes with its gradient; the engine sets it.
    """

    total: Total

    def __init__(  # noqa: PLR0913 - all but the two modules by name
        self,
        encoder: Encoder,
        decoder: Decoder | None,
        *,
        target: Target,
        noise: Noise,
        clips: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        keep: float | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.target = target
        self.noise = noise
        self.clips = clips
        self.mean = mean
        self.std = std
        self.keep = keep
        self.total = one_process
        values = target.visible_values(encoder.shape)
        self.visible_head = nn.Linear(encoder.shape.width, values) if values else None
        if self.visible_head is not None:
            init_weights(self.visible_head)
        target.bind(encoder)

    def forward(self, batch: ClipBatch, draws: ClipRandom) -> dict[str, Tensor]:
        """Per-clip values of shape (B,), "loss" among them; means over the masks of a clip.

        Args:
            batch: `batch.tokens` holds "visible" (B, K), "target" (B, M) and optionally "run_length" (B, K);
                with several masks per clip (B, masks, K) and so on.
            draws: random numbers of the clips, for noise and drop path. Each mask has its own.
        """
        prediction, inputs, threshold_loss_B = self._predict(batch, draws)
        losses = self.target(prediction, inputs)
        if threshold_loss_B is not None:
            losses["loss"] = add_gradient_of(losses["loss"], threshold_loss_B)
        clips = len(batch.clip_index_B)
        return {name: value.unflatten(0, (clips, -1)).mean(dim=1) for name, value in losses.items()}

    def predict(self, batch: ClipBatch, draws: ClipRandom) -> tuple[Prediction, TargetInputs]:
        """Run the model; return the prediction and the inputs of the target, with a row for each mask."""
        return self._predict(batch, draws)[:2]

    def _predict(self, batch: ClipBatch, draws: ClipRandom) -> tuple[Prediction, TargetInputs, Tensor | None]:
        """Like `predict`, with the loss of the scorer's threshold if there is one."""
        original_BCTHW = batch.clip_BCTHW if self.encoder.shape.standardize else None
        batch = self.standardized(batch)
        target_BM, run_length_BK = rows_of_masks(batch, "target"), None
        if "run_length" in batch.tokens:
            run_length_BK = rows_of_masks(batch, "run_length")
        patches_BKP, visible_BK, added_BKP, level_B, draws = self.encoder_inputs(batch, draws)
        threshold_loss_B = None
        x_BKD = self.encoder.embed(patches_BKP, visible_BK, run_length_BK)
        x_BKD = self.noise.on_tokens(x_BKD, level_B, draws)
        if self.keep is not None:
            kept = self.encoder.scorer.select(x_BKD, self.keep)
            x_BKD, threshold_loss_B = kept.x_BKD, kept.threshold_loss_B
            visible_BK = visible_BK.gather(1, kept.index_BK)
            added_BKP = None if added_BKP is None else gather_tokens(added_BKP, kept.index_BK)
        memory_BKD = self.encoder.encode(x_BKD, visible_BK, draws)
        prediction = Prediction(
            decoded_BMP=None
            if self.decoder is None
            else self.decoder(memory_BKD, visible_BK, target_BM, level_B),
            visible_BKP=None if self.visible_head is None else self.visible_head(memory_BKD),
        )
        inputs = TargetInputs(
            clip_BCTHW=batch.clip_BCTHW,
            target_BM=target_BM,
            visible_BK=visible_BK,
            added_BKP=added_BKP,
            patch=self.encoder.shape.patch,
            mean=self.mean,
            std=self.std,
            original_BCTHW=original_BCTHW,
            views=ViewInputs(
                tokens_BKD=memory_BKD,
                weight_B=batch.weight_B,
                draws=ClipRandom(draws.seed, batch.clip_index_B),
                encode=partial(self.encode_views, batch.clip_index_B),
                total=self.total,
            ),
        )
        return prediction, inputs, threshold_loss_B

    def standardized(self, batch: ClipBatch) -> ClipBatch:
        """The batch with the clips that the encoder sees, from which noise and targets follow."""
        if not self.encoder.shape.standardize:
            return batch
        return replace(batch, pixels=self.encoder.standardized(batch.clip_BCTHW, self.mean, self.std))

    def encoder_inputs(self, batch: ClipBatch, draws: ClipRandom) -> EncoderInputs:
        """Normalized visible patches of a standardized batch, with all noise but noise on tokens."""
        clip_BCTHW = batch.clip_BCTHW
        self.encoder.check_clip(clip_BCTHW)
        visible_BK, patch = rows_of_masks(batch, "visible"), self.encoder.shape.patch
        draws = draws.for_masks(len(visible_BK) // len(batch.clip_index_B))
        level_B = self._level(batch.clip_index_B, draws)
        noisy_BCTHW = self.noise.on_clip(clip_BCTHW, level_B, draws)
        clean_BKP = normalize(take_patches(noisy_BCTHW, visible_BK, patch), self.mean, self.std)
        positions = TokenPositions(grid=self.encoder.grid, index_BN=visible_BK)
        patches_BKP = self.noise.on_patches(clean_BKP, level_B, draws, positions=positions, patch=patch)
        added_BKP = patches_BKP - clean_BKP if self.target.needs_noise else None
        return EncoderInputs(patches_BKP, visible_BK, added_BKP, level_B, draws)

    def _level(self, clip_index_B: Tensor, draws: ClipRandom) -> Tensor:
        """Noise level of each row of the draws, of which each clip has the same number."""
        progress_B = (clip_index_B.double() / self.clips).clamp(max=1).float()
        rows = len(draws.clip_index_B) // len(clip_index_B)
        return self.noise.level(progress_B.repeat_interleave(rows), draws)

    def encode_views(
        self, clip_index_B: Tensor, patches_RKP: Tensor, index_RK: Tensor, draws: ClipRandom
    ) -> Tensor:
        """Encode views of the clips with their own noise on patches and tokens, as tokens_RKD.

        Args:
            patches_RKP: uint8 patches of R views, R / B successive ones of each clip.
            index_RK: grid indices of the patches.
            draws: random numbers of the views.
        """
        level_R, clean_RKP = self._level(clip_index_B, draws), normalize(patches_RKP, self.mean, self.std)
        positions, patch = TokenPositions(grid=self.encoder.grid, index_BN=index_RK), self.encoder.shape.patch
        noisy_RKP = self.noise.on_patches(clean_RKP, level_R, draws, positions=positions, patch=patch)
        x_RKD = self.noise.on_tokens(self.encoder.embed(noisy_RKP, index_RK), level_R, draws)
        return self.encoder.encode(x_RKD, index_RK, draws)

    def after_update(self, progress: float) -> None:
        """Update the target after an optimizer step; `progress` is the fraction of the run done."""
        with torch.no_grad():
            self.target.after_update(self.encoder, progress)


def rows_of_masks(batch: ClipBatch, name: str) -> Tensor:
    """A batch's token lists with a row for each mask, from (B, K) or (B, masks, K)."""
    return batch.tokens[name].flatten(0, -2)


def build_autoencoder(  # noqa: PLR0913 - all but the first two by name
    config: ModelConfig,
    grid: TokenGrid,
    *,
    target: Target,
    noise: Noise,
    pruning: Pruning | None = None,
    clips: int = 1,
    reference: TokenGrid | None = None,
) -> MaskedAutoencoder:
    """Build the model of a config. Seed PyTorch beforehand; works on the meta device.

    Args:
        clips: number of clips in the whole run.
        reference: the grid of the weights to be loaded, from which positions are resampled; None: `grid`.

    Raises:
        ValueError: incompatible components.
    """
    shape = config.shape()
    encoder_shape = shape.encoder if pruning is None else pruning.shape(shape.encoder)
    encoder = Encoder(encoder_shape, grid, reference=reference, drop_path=config.drop_path)
    encoder.merge_tokens(config.merge_per_block)
    decoder, values = None, target.target_values(shape.encoder)
    if values:
        decoder = DECODERS[config.decoder](
            shape.decoder,
            grid,
            memory_width=shape.encoder.width,
            values=values,
            noise_conditioned=config.noise_conditioning,
            reference=reference,
        )
    return MaskedAutoencoder(
        encoder,
        decoder,
        target=target,
        noise=noise,
        clips=clips,
        mean=tuple(config.mean),
        std=tuple(config.std),
        keep=pruning.keep if pruning is not None and pruning.is_learned else None,
    )
