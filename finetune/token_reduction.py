"""Shorter clips: what pruning and merging ask of an encoder, and what does not go together."""

from dataclasses import dataclass, field

from kinemae.data_tools.components import Component, build_component
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape, check_merging
from kinemae.pretrain.pruning.base import Pruning


@dataclass(frozen=True, kw_only=True)
class TokenReduction:
    """What makes fewer tokens of a clip.

    Attributes:
        pruning: which tokens the encoder sees, a part of `pretrain/pruning`.
        merge_per_block: how many tokens merge in each block of the encoder.
    """

    pruning: Component = field(default_factory=lambda: Component(name="none"))
    merge_per_block: int = 0

    @property
    def packs(self) -> bool:
        """Whether each clip keeps as many tokens as it needs, so that clips are packed into one row."""
        return build_component("kinemae.pretrain.pruning", self.pruning, Pruning).keep is None

    def build(self, shape: EncoderShape, *, may_learn: bool = True) -> Pruning:
        """The pruning, for an encoder of this shape.

        Args:
            may_learn: whether the encoder's weights are still to be trained.

        Raises:
            ValueError: no such pruning, arguments that it refuses, or what does not go with the rest.
        """
        pruning = build_component("kinemae.pretrain.pruning", self.pruning, Pruning)
        check_merging(self.merge_per_block, shape.attention, key="merge.per_block")
        if self.merge_per_block and pruning.keep is None:
            raise ValueError(
                "merge.per_block must be 0 where pruning lets each clip keep what it needs, got "
                f"{self.merge_per_block}: packed clips do not merge; give pruning.args.keep a share"
            )
        if pruning.is_learned and not shape.scorer and not may_learn:
            raise ValueError(
                f"pruning.name={self.pruning.name} needs an encoder that has learned to score its tokens; "
                "this one has not, and its weights do not change any more: take another pruning"
            )
        return pruning

    def apply(self, encoder: Encoder, pruning: Pruning) -> Encoder:
        """The encoder with the weights that the pruning needs, fresh where it had none, and with merging."""
        shape = pruning.shape(encoder.shape)
        if shape != encoder.shape:
            grown = Encoder(shape, encoder.grid, reference=encoder.reference)
            grown.drop_path_rates = encoder.drop_path_rates
            grown.load_state_dict(encoder.state_dict(), strict=False)  # the new weights alone are missing
            encoder = grown
        encoder.merge_tokens(self.merge_per_block, key="merge.per_block")
        return encoder
