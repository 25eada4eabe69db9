"""Config of `kinemae finetune predict`: windows, batches, devices, and what is written."""

from dataclasses import dataclass

from kinemae.data_tools.config import require
from kinemae.finetune.inference.windows import WindowConfig
from kinemae.pretrain.runtime.settings import BatchConfig

DENSE_THRESHOLD, DETECTION_THRESHOLD = 0.5, 0.1  # default of `threshold`


@dataclass(frozen=True, kw_only=True)
class PredictConfig(WindowConfig):
    """Settings of a prediction.

    Attributes:
        spatial_crops: 1 (the centre) or 3 (both ends and the centre of the longer side).
        threshold: lowest probability of a segment: of a class that may overlap others in time, 0.5 by
            default; of a detection, 0.1 by default.
        overlay: write an mp4 of each video with its scores; null: if the source is one video.
        live: read SOURCE as a stream; null: if it is a camera, "-", rtsp://, rtmp://, udp://, tcp:// or srt://.
        seconds: end of a stream; null: until it ends or is interrupted.
    """

    spatial_crops: int = 1
    threshold: float | None = None
    overlay: bool | None = None
    live: bool | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.spatial_crops in (1, 3), "spatial_crops", "be 1 or 3", self.spatial_crops)
        is_probability = self.threshold is None or 0 <= self.threshold < 1
        require(is_probability, "threshold", "be null or lie in [0, 1)", self.threshold)
        require(self.seconds is None or self.seconds > 0, "seconds", "be null or above 0", self.seconds)

    @property
    def batch(self) -> BatchConfig:
        """Size of forward passes."""
        return BatchConfig(clips_per_device=self.clips_per_device)
