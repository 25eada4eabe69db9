"""Freezing of the encoder's lower blocks."""

from kinemae.data_tools.config import require
from kinemae.pretrain.model.encoder import Encoder


def train_last_blocks(encoder: Encoder, blocks: int) -> None:
    """Freeze all weights but those of the last blocks and of the final norm.

    Raises:
        ValueError: the encoder has fewer blocks.
    """
    depth = encoder.shape.depth
    require(blocks <= depth, "adapt.blocks", f"be at most {depth}, the encoder's blocks", blocks)
    encoder.requires_grad_(False)
    for trained in (*encoder.blocks[depth - blocks :], encoder.norm):
        trained.requires_grad_(True)
