"""The masked autoencoder: encoder, decoder, noise and target, from a batch to losses."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.model.blocks import init_weights
from kinemae.pretrain.model.decoder import DECODERS, Decoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.scorer import add_gradient_of
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.token_positions import TokenPositions
from kinemae.pretrain.model.tokens import TokenGrid, gather_tokens, normalize, take_patches
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.targets.base import Prediction, Target, TargetInputs


class EncoderInputs(NamedTuple):
    """Inputs of the encoder for a batch.

    Attributes:
        patches_BKP: visible patches, normalized, with noise.
        added_BKP: noise added to the patches; None unless the target needs it.
        level_B: noise level.
    """

    patches_BKP: Tensor
    added_BKP: Tensor | None
    level_B: Tensor


class MaskedAutoencoder(nn.Module):
    """Predicts the target tokens of a clip from its visible tokens; noise is added to the encoder's input
    only.

    Args:
        decoder: None if the target concerns visible tokens only.
        clips: number of clips in the whole run, from which a clip's progress in the run follows.
        mean, std: normalization of pixels.
        keep: fraction of the visible tokens that the encoder's scorer keeps; None without a learned scorer.
    """

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
        values = target.visible_values(encoder.shape)
        self.visible_head = nn.Linear(encoder.shape.width, values) if values else None
        if self.visible_head is not None:
            init_weights(self.visible_head)
        target.bind(encoder)

    def forward(self, batch: ClipBatch, draws: ClipRandom) -> dict[str, Tensor]:
        """Per-clip values of shape (B,), "loss" among them.

        Args:
            batch: `batch.tokens` holds "visible" (B, K), "target" (B, M) and optionally "run_length" (B, K).
            draws: random numbers of the clips, for noise and drop path.
        """
        prediction, inputs, threshold_loss_B = self._predict(batch, draws)
        losses = self.target.losses(prediction, inputs)
        if threshold_loss_B is not None:
            losses["loss"] = add_gradient_of(losses["loss"], threshold_loss_B)
        return losses

    def predict(self, batch: ClipBatch, draws: ClipRandom) -> tuple[Prediction, TargetInputs]:
        """Run the model; return the prediction and the inputs of the target."""
        return self._predict(batch, draws)[:2]

    def _predict(self, batch: ClipBatch, draws: ClipRandom) -> tuple[Prediction, TargetInputs, Tensor | None]:
        """Like `predict`, with the loss of the scorer's threshold if there is one."""
        batch = self.standardized(batch)
        visible_BK, target_BM = batch.tokens["visible"], batch.tokens["target"]
        encoder_inputs = self.encoder_inputs(batch, draws)
        added_BKP, threshold_loss_B = encoder_inputs.added_BKP, None
        x_BKD = self.encoder.embed(encoder_inputs.patches_BKP, visible_BK, batch.tokens.get("run_length"))
        x_BKD = self.noise.on_tokens(x_BKD, encoder_inputs.level_B, draws)
        if self.keep is not None:
            kept = self.encoder.scorer.select(x_BKD, self.keep)
            x_BKD, threshold_loss_B = kept.x_BKD, kept.threshold_loss_B
            visible_BK = visible_BK.gather(1, kept.index_BK)
            added_BKP = None if added_BKP is None else gather_tokens(added_BKP, kept.index_BK)
        memory_BKD = self.encoder.encode(x_BKD, visible_BK, draws)
        prediction = Prediction(
            decoded_BMP=None
            if self.decoder is None
            else self.decoder(memory_BKD, visible_BK, target_BM, encoder_inputs.level_B),
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
        visible_BK, patch = batch.tokens["visible"], self.encoder.shape.patch
        progress_B = (batch.clip_index_B.double() / self.clips).clamp(max=1).float()
        level_B = self.noise.level(progress_B, draws)
        noisy_BCTHW = self.noise.on_clip(clip_BCTHW, level_B, draws)
        clean_BKP = normalize(take_patches(noisy_BCTHW, visible_BK, patch), self.mean, self.std)
        positions = TokenPositions(grid=self.encoder.grid, index_BN=visible_BK)
        patches_BKP = self.noise.on_patches(clean_BKP, level_B, draws, positions=positions, patch=patch)
        added_BKP = patches_BKP - clean_BKP if self.target.needs_noise else None
        return EncoderInputs(patches_BKP, added_BKP, level_B)

    def after_update(self, progress: float) -> None:
        """Update the target after an optimizer step; `progress` is the fraction of the run done."""
        with torch.no_grad():
            self.target.after_update(self.encoder, progress)


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
