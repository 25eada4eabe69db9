"""Settings of `visualize`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kinemae.data_tools.components import Component
from kinemae.data_tools.config import require

VIEWS = ("attention", "pooling", "pruning", "merging", "reconstruction", "similarity", "pca")
_BLOCKS = 4


@dataclass(frozen=True, kw_only=True)
class VisualizeConfig:
    """Settings of the pictures.

    Attributes:
        views: names of `VIEWS`; null for all that the model has.
        blocks: block numbers from 0, or from -1 for the last; null for up to four, evenly spaced.
        heads: head numbers from 0; null for the mean of all heads.
        point: x and y of a patch, as fractions of the width and the height of the clip, from the top left.
            With it, attention is that from this patch in the middle of each window; similarity is to the
            patch in the middle of the picture by default.
        point_s: time of the patch for similarity, in seconds; null for the middle of the video.
        pruning: pruning strategies, as `{NAME: {ARGUMENT: VALUE}}`; null for all.
        merge_per_block: tokens to merge in each block; null for the model's own number, or, if that is 0, so
            many that a quarter of the tokens is left.
        masking: masking of the reconstruction; null for that of the pretraining.
        stride, fps: distance of the frames of a window; null for that of the pretraining.
        keys: samples of shards, or files of a folder; null for a seeded sample.
        samples: number of videos in that sample.
        windows: number of windows of each video on the page and in the still pictures.
        seed: of the sample, and of masks and noise.
        device: auto, cpu or cuda.
    """

    views: list[str] | None = None
    blocks: list[int] | None = None
    heads: list[int] | None = None
    point: list[float] | None = None
    point_s: float | None = None
    pruning: Any = None
    merge_per_block: int | None = None
    masking: Component | None = None
    stride: int | None = None
    fps: float | None = None
    keys: list[str] | None = None
    samples: int = 2
    windows: int = 4
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        unknown = [name for name in self.views or () if name not in VIEWS]
        require(not unknown and self.views != [], "views", f"name some of {', '.join(VIEWS)}", self.views)
        is_point = self.point is None or (len(self.point) == 2 and all(0 <= each <= 1 for each in self.point))
        require(is_point, "point", "hold x and y as fractions from 0 to 1", self.point)
        require(self.point_s is None or self.point_s >= 0, "point_s", "be 0 or more seconds", self.point_s)
        require(self.stride is None or self.stride >= 1, "stride", "be at least 1", self.stride)
        require(self.fps is None or self.fps > 0, "fps", "be above 0", self.fps)
        require(self.stride is None or self.fps is None, "fps", "be omitted with stride", self.fps)
        for name in ("samples", "windows"):
            require(getattr(self, name) >= 1, name, "be at least 1", getattr(self, name))
        require(self.device in ("auto", "cpu", "cuda"), "device", "be auto, cpu or cuda", self.device)
        for name in ("blocks", "heads", "keys"):
            require(getattr(self, name) != [], name, "hold at least one, or be null", [])

    @property
    def place(self) -> tuple[float, float]:
        """The point; the middle by default."""
        return (0.5, 0.5) if self.point is None else (self.point[0], self.point[1])

    def block_numbers(self, depth: int) -> list[int]:
        """The chosen blocks, from 0.

        Raises:
            ValueError: the encoder has no such block.
        """
        if self.blocks is None:
            count = min(_BLOCKS, depth)
            return [(i + 1) * depth // count - 1 for i in range(count)]
        is_known = all(-depth <= block < depth for block in self.blocks)
        require(is_known, "blocks", f"lie in 0 to {depth - 1}, or in {-depth} to -1", self.blocks)
        return [block % depth for block in self.blocks]

    def head_numbers(self, heads: int, *, owner: str = "the encoder") -> Sequence[int] | None:
        """The chosen heads; None for the mean.

        Raises:
            ValueError: the owner of the heads has no such one.
        """
        is_known = self.heads is None or all(0 <= head < heads for head in self.heads)
        require(is_known, "heads", f"lie in 0 to {heads - 1} for {owner}", self.heads)
        return self.heads
