"""Token pruning and merging in fine-tuning: which tokens the encoder processes."""

from dataclasses import dataclass, field

from kinemae.data_tools.components import Component, build_component
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape, check_merging
from kinemae.pretrain.pruning.base import Pruning


@dataclass(frozen=True, kw_only=True)
class TokenReduction:
    """Settings of pruning and merging.

    Attributes:
        pruning: a component of `pretrain/pruning`.
        merge_per_block: number of tokens merged in each block of the encoder.
    """

    pruning: Component = field(default_factory=lambda: Component(name="none"))
    merge_per_block: int = 0

    @property
    def is_packed(self) -> bool:
        """True if clips keep different numbers of tokens and are packed into one row."""
        return self._pruning().keep is None

    def build_pruning(self, shape: EncoderShape, *, may_learn: bool = True) -> Pruning:
        """Build the pruning for an encoder of this shape.

        Args:
            may_learn: whether the encoder will be trained.

        Raises:
            ValueError: unknown pruning, arguments that it rejects, or an encoder that does not support it.
        """
        pruning = self._pruning()
        check_merging(self.merge_per_block, shape.attention, key="merge.per_block")
        if self.merge_per_block and pruning.keep is None:
            raise ValueError(
                "merge.per_block: expected 0 with a pruning that keeps a different number of tokens per "
                f"clip, got {self.merge_per_block}; fix: set pruning.args.keep to a fraction"
            )
        if pruning.is_learned and not shape.scorer and not may_learn:
            raise ValueError(
                f"pruning.name: expected a pruning that needs no trained scorer, got {self.pruning.name}, "
                "and the encoder has no scorer; fix: choose another pruning"
            )
        return pruning

    def apply(self, encoder: Encoder, pruning: Pruning) -> Encoder:
        """Return the encoder with merging on and with the weights that the pruning needs, new if missing."""
        shape = pruning.shape(encoder.shape)
        if shape != encoder.shape:
            extended = Encoder(shape, encoder.grid, reference=encoder.reference)
            extended.drop_path_rates = encoder.drop_path_rates
            extended.load_state_dict(encoder.state_dict(), strict=False)  # only the new weights are missing
            encoder = extended
        encoder.merge_tokens(self.merge_per_block, key="merge.per_block")
        return encoder

    def _pruning(self) -> Pruning:
        return build_component("kinemae.pretrain.pruning", self.pruning, Pruning)
