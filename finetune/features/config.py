"""Config of `kinemae finetune features`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kinemae.data_tools.config import require
from kinemae.finetune.features.files import SUFFIXES
from kinemae.finetune.inference.windows import WindowConfig


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(WindowConfig):
    """Everything that features depend on, besides encoder and source.

    Attributes:
        kind: "clip": one vector per window; "slices": one per time slice of a window; "tokens": all tokens of
            a window; "pooled": one vector per video, the mean over its windows.
        pool: "mean" of the tokens, or "statistics": their mean and standard deviation.
        layer: block whose output is taken, from 0, or from -1 at the end; the final norm is applied.
        frames, size: of a window, see `ClipConfig`; null: those of the encoder.
        dtype: of the stored values.
        thumbnails: height and width of the stored thumbnails in pixels; 0 for none.
        subset: name of the subset in the annotations of a folder for ActionFormer.
        segments: column of the shards with labelled segments, for these annotations.
        rebuild: replace features of another encoder, source or config.
        max_bad_fraction: largest fraction of unreadable videos.
    """

    kind: Literal["clip", "slices", "tokens", "pooled"] = "clip"
    pool: Literal["mean", "statistics"] = "mean"
    layer: int = -1
    frames: int | None = None
    size: int | None = None
    dtype: Literal["float32", "float16"] = "float32"
    thumbnails: int = 64
    subset: str = "training"
    segments: str | None = None
    rebuild: bool = False
    max_bad_fraction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        is_vector = self.kind in ("clip", "pooled") or self.pool == "mean"
        require(is_vector, "pool", f"be mean with kind={self.kind}", self.pool)
        require(0 <= self.thumbnails <= 256, "thumbnails", "lie between 0 and 256", self.thumbnails)
        is_fraction = 0 <= self.max_bad_fraction <= 1
        require(is_fraction, "max_bad_fraction", "lie between 0 and 1", self.max_bad_fraction)

    def check_out(self, out: Path) -> bool:
        """Return whether OUT is a folder for ActionFormer and not a file.

        Raises:
            ValueError: its vectors would not have equal steps, or OUT has an unknown suffix.
        """
        if out.suffix in SUFFIXES:
            return False
        fix = "fix: give OUT the suffix .parquet or .npz"
        if out.suffix and not out.is_dir():
            raise ValueError(
                f"OUT {out}: expected a name that ends in .parquet or .npz, or a folder without a suffix for "
                f"ActionFormer, got the suffix {out.suffix}; {fix}"
            )
        if self.kind not in ("clip", "slices"):
            raise ValueError(
                f"kind: expected clip or slices for a folder of ActionFormer, got {self.kind}; fix: set "
                f"kind=clip, or {fix.removeprefix('fix: ')}"
            )
        return True

    def settings(self) -> dict[str, Any]:
        """The keys that determine the features, for the provenance."""
        names = ("kind", "pool", "layer", "dtype", "thumbnails", "clips_per_device")
        return {**{name: getattr(self, name) for name in names}, "window": self.placement()}
