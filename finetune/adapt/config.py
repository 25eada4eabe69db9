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
        """Refuse a key that this method does not use."""
        require(
            is_unset or self.method in methods,
            f"adapt.{key}",
            f"stay unset with adapt.method={self.method}: it is only for {' and '.join(methods)}",
            getattr(self, key),
        )
