"""Freezing of the encoder's lower blocks, for the whole run or up to a fraction of it."""

from collections.abc import Callable, Sequence

from kinemae.data_tools.config import require
from kinemae.finetune.adapt.layer_decay import layer_of
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


def freeze_first_blocks(encoder: Encoder, blocks: int) -> None:
    """Freeze the embedding and the first blocks, and turn their drop path off.

    Raises:
        ValueError: the encoder has fewer blocks.
    """
    depth = encoder.shape.depth
    require(blocks <= depth, "adapt.freeze_blocks", f"be at most {depth}, the encoder's blocks", blocks)
    for name, weight in encoder.named_parameters():
        if layer_of(f"encoder.{name}", depth) <= blocks:
            weight.requires_grad_(False)
    encoder.drop_path_rates[:blocks] = [0.0] * blocks


def starts_at(encoder: Encoder, fractions: Sequence[float]) -> Callable[[str], float]:
    """Return the function that maps a parameter's name to the fraction of the run before which it is frozen.

    The trained blocks are divided into equal groups, one for each fraction, from the top. The embedding
    starts with the lowest group. The final norm and the head are trained from the start.

    Args:
        fractions: ascending; empty: everything is trained from the start.

    Raises:
        ValueError: more fractions than trained blocks.
    """
    depth = encoder.shape.depth
    first = next(
        (i for i, block in enumerate(encoder.blocks) if any(p.requires_grad for p in block.parameters())),
        depth,
    )
    why = f"have at most {depth - first} values, one for each trained block"
    require(len(fractions) <= depth - first, "adapt.unfreeze_at", why, list(fractions))

    def start(name: str) -> float:
        layer = layer_of(name, depth)
        if not fractions or layer > depth:
            return 0.0
        from_top = depth - max(layer, first + 1)
        return fractions[from_top * len(fractions) // (depth - first)]

    return start
