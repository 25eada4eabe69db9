"""The masked autoencoder: one clip in, one loss out."""

import torch
from torch import Tensor, nn

from data_tools.randomness import ClipRandom
from data_tools.stream.batch import ClipBatch
from pretrain.model.decoder import CrossDecoder, Decoder, SelfDecoder
from pretrain.model.encoder import Encoder
from pretrain.model.sizes import ModelConfig
from pretrain.model.tokens import TokenGrid, normalise, take_patches
from pretrain.noise.base import Noise
from pretrain.targets.base import Target


class MaskedAutoencoder(nn.Module):
    """Predicts wanted tokens of a clip from its visible ones; noise is on what it sees alone."""

    def __init__(self, encoder: Encoder, decoder: Decoder, *, target: Target, noise: Noise):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.target = target
        self.noise = noise

    def forward(self, batch: ClipBatch, draws: ClipRandom) -> dict[str, Tensor]:
        """Per-clip values of shape (B,), "loss" among them.

        Args:
            batch: its tokens name "visible" (B, K) and "wanted" (B, M).
            draws: the clips' randomness, for noise and drop path.
        """
        prediction_BMP = self.predict(batch, draws)
        with torch.no_grad():
            wanted_BM = batch.tokens["wanted"]
            target_BMP = self.target(batch.clip_BCTHW, wanted_BM, patch=self.encoder.shape.patch)
        return {"loss": self.target.loss(prediction_BMP, target_BMP)}

    def predict(self, batch: ClipBatch, draws: ClipRandom) -> Tensor:
        """The wanted tokens' predictions_BMP in the target's units."""
        visible_BK = batch.tokens["visible"]
        memory_BKD = self.encoder(self.seen(batch, draws), visible_BK, draws)
        return self.decoder(memory_BKD, visible_BK, batch.tokens["wanted"])

    def seen(self, batch: ClipBatch, draws: ClipRandom) -> Tensor:
        """What the encoder gets: the visible patches_BKP, normalised, then noised."""
        patches_BKP = take_patches(batch.clip_BCTHW, batch.tokens["visible"], self.encoder.shape.patch)
        return self.noise(normalise(patches_BKP), draws)


def build_autoencoder(
    config: ModelConfig, grid: TokenGrid, *, target: Target, noise: Noise
) -> MaskedAutoencoder:
    """Build the model that a config names. Seed PyTorch first; works on the meta device too."""
    shape = config.shape()
    encoder = Encoder(shape.encoder, grid, drop_path=config.drop_path)
    kind = {"self": SelfDecoder, "cross": CrossDecoder}[config.decoder]
    values = target.values(shape.encoder.patch)
    decoder = kind(shape.decoder, grid, memory_width=shape.encoder.width, values=values)
    return MaskedAutoencoder(encoder, decoder, target=target, noise=noise)
