"""Config of the adaptation: which weights of the encoder a fine-tuning run trains."""

from dataclasses import dataclass, field
from typing import Literal

from kinemae.data_tools.config import require

PEFT_METHODS = ("lora", "dora", "ia3")
TARGETS = ("qkv", "proj", "fc1", "fc2")
DEFAULT_RANK = 16
_LOW_RANK = ("lora", "dora")
_IA3_TARGETS = ("qkv", "fc2")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Trained weights of the encoder; the head is always trained.

    Attributes:
        method: "full" trains all weights, "frozen" none, "last_blocks" the last `blocks` blocks and the final
            norm, "lora" (arXiv 2106.09685), "dora" (arXiv 2402.09353) and "ia3" (arXiv 2205.05638) adapters.
        blocks: number of trained blocks of "last_blocks".
        freeze_blocks: with "full": keep the embedding and this many first blocks frozen.
        unfreeze_at: with "full" and "last_blocks": gradual unfreezing. Ascending fractions of the run; the
            trained blocks are divided into as many groups, and each group trains from its fraction on, the
            top one first.
        rank: rank of the adapters of "lora" and "dora"; null: 16.
        alpha: the change of a layer is multiplied by alpha / rank; null: the rank.
        rslora: multiply by alpha / sqrt(rank) instead (arXiv 2312.03732).
        dropout: fraction of the inputs of "lora" and "dora" adapters that is set to 0.
        targets: adapted layers of each block: attention `qkv` and `proj`, MLP `fc1` and `fc2`; empty: all,
            and qkv and fc2 for "ia3".
        save_adapter: also write the adapter in peft's format to `model/adapter`.
    """

    method: Literal["full", "frozen", "last_blocks", "lora", "dora", "ia3"] = "full"
    blocks: int | None = None
    freeze_blocks: int = 0
    unfreeze_at: list[float] = field(default_factory=list)
    rank: int | None = None
    alpha: float | None = None
    rslora: bool = False
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)
    save_adapter: bool = False

    def __post_init__(self) -> None:
        if self.method == "last_blocks":
            has_blocks = self.blocks is not None and self.blocks >= 1
            require(has_blocks, "adapt.blocks", "be at least 1", self.blocks)
        else:
            self._refuse("blocks", self.blocks is None, ("last_blocks",))
        self._refuse("freeze_blocks", self.freeze_blocks == 0, ("full",))
        self._refuse("unfreeze_at", not self.unfreeze_at, ("full", "last_blocks"))
        require(self.freeze_blocks >= 0, "adapt.freeze_blocks", "be 0 or more", self.freeze_blocks)
        is_ascending = self.unfreeze_at == sorted(self.unfreeze_at)
        are_fractions = is_ascending and all(0 <= fraction < 1 for fraction in self.unfreeze_at)
        require(are_fractions, "adapt.unfreeze_at", "be ascending numbers in [0, 1)", self.unfreeze_at)
        self._refuse("rank", self.rank is None, _LOW_RANK)
        self._refuse("alpha", self.alpha is None, _LOW_RANK)
        self._refuse("rslora", not self.rslora, _LOW_RANK)
        self._refuse("dropout", self.dropout == 0, _LOW_RANK)
        self._refuse("targets", not self.targets, PEFT_METHODS)
        self._refuse("save_adapter", not self.save_adapter, PEFT_METHODS)
        require(self.rank is None or self.rank >= 1, "adapt.rank", "be at least 1", self.rank)
        require(self.alpha is None or self.alpha > 0, "adapt.alpha", "be above 0", self.alpha)
        require(0 <= self.dropout < 1, "adapt.dropout", "lie in [0, 1)", self.dropout)
        is_known = set(self.targets) <= set(TARGETS) and len(set(self.targets)) == len(self.targets)
        require(is_known, "adapt.targets", f"name some of {', '.join(TARGETS)}, each once", self.targets)

    @property
    def freezes_encoder(self) -> bool:
        """True if no weight of the encoder changes and no gradient passes through it."""
        return self.method == "frozen"

    @property
    def trains_all(self) -> bool:
        """True if all weights of the encoder are trained, new ones too."""
        return self.method == "full"

    @property
    def has_adapters(self) -> bool:
        """True if peft adds adapters to the encoder."""
        return self.method in PEFT_METHODS

    @property
    def adapted_layers(self) -> tuple[str, ...]:
        """Names of the adapted layers of each block."""
        return tuple(self.targets) or (_IA3_TARGETS if self.method == "ia3" else TARGETS)

    def _refuse(self, key: str, is_unset: bool, methods: tuple[str, ...]) -> None:
        """Reject a key that this method does not use."""
        require(
            is_unset or self.method in methods,
            f"adapt.{key}",
            f"stay unset with adapt.method={self.method}: it is only for {' and '.join(methods)}",
            getattr(self, key),
        )
