"""Thumbnails: clips with the crop and frames that the model got, animated and still, as data URIs."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kinemae.data_tools.command import CheckpointError, DataError
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.overrides import as_override
from kinemae.data_tools.report.render import data_uri
from kinemae.data_tools.stream.evaluation_clips import EvaluationItem, EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.yuv_to_rgb import to_rgb
from kinemae.finetune.build import clip_config
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.labels.data_sets import open_scored
from kinemae.finetune.model_file import load_task
from kinemae.pretrain.exported_model import load_description
from kinemae.pretrain.folder_kinds import MODEL_FOLDER

_MOST_PIXELS = 128  # height and width of a thumbnail
_MOST_SECONDS = 4.0  # longer clips are shown faster
_FRAME_MS = (40, 1000)
_QUALITY = 70


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A clip as data URIs.

    Attributes:
        animation, still: WebP of all frames and of the middle one; "" if the video is unreadable.
        text: number of frames and time between the first and the last one, or the reason.
    """

    animation: str = ""
    still: str = ""
    size: tuple[int, int] = (0, 0)
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """The validation videos of a run and the views of its evaluation."""

    videos: EvaluationVideos
    number: Mapping[str, int]

    def thumbnail(self, key: str) -> Thumbnail:
        """The middle clip of a video with its centre crop."""
        if key not in self.number:
            return Thumbnail(text="not in the data set")
        item = self.videos.read(self.number[key], quarantined={}, on_sample=lambda key: None)
        if item.skipped is not None:
            return Thumbnail(text=item.skipped.reason)
        return _thumbnail(item, len(item.pixels) // 2)


def open_clips(
    folder: Path, result: Mapping[str, Any], validation: str | None = None
) -> tuple[ClipSource | None, str]:
    """Open the samples that a run was scored on.

    Args:
        folder: the run's folder.
        validation: another place of the same data set.

    Returns:
        The source of clips, or None and the reason why there is none.
    """
    data = dict(result.get("data") or {})
    expected = data.pop("fingerprint", None)
    if len(data) != 1:
        return None, "The result does not name its data, so clips cannot be shown."
    [(name, place)] = data.items()
    try:
        index, clip = _open_scored(folder, name, validation or place)
    except (ValueError, DataError, CheckpointError, OSError) as error:
        return None, f"Clips cannot be shown: {error}"
    if expected not in (None, index.fingerprint):
        return None, (
            f"Clips cannot be shown: {validation or place} changed after the run was scored (fingerprint "
            f"{index.fingerprint}, expected {expected})."
        )
    views = result.get("views") or {}
    temporal_clips = 1 if views.get("sliding") else int(views.get("temporal_clips") or 1)
    videos = EvaluationVideos(
        index, range(len(index)), clip=clip, temporal_clips=temporal_clips, spatial_crops=1
    )
    number = {key: position for position, key in enumerate(index.column("key").tolist())}
    return ClipSource(videos=videos, number=number), ""


def _open_scored(folder: Path, name: str, place: str) -> tuple[ShardIndex, ClipConfig]:
    """Open the scored samples of the run's task.

    Args:
        name: of the data in the config: "validation", "test" or "held_out".
    """
    overrides = [f"evaluate.data={name}"]
    if name != "held_out":
        overrides.append(as_override(f"data.{name}", place))
    config = load_config(FinetuneConfig, folder / "config.yaml", overrides)
    clip = clip_config(config, load_description(folder / MODEL_FOLDER))
    return open_scored(config, load_task(folder / MODEL_FOLDER), clip).index, clip


def thumbnails(source: ClipSource | None, keys: Iterable[str]) -> dict[str, Thumbnail]:
    """Read the clips of some samples, each once."""
    return {} if source is None else {key: source.thumbnail(key) for key in dict.fromkeys(keys)}


def _thumbnail(item: EvaluationItem, view: int) -> Thumbnail:
    [clip_CTHW] = to_rgb(item.pixels[view : view + 1])
    pictures = [_shrink(frame) for frame in clip_CTHW.permute(1, 2, 3, 0).contiguous().numpy()]
    time_T = item.time_VT[view].numpy()
    milliseconds, speed = _durations(time_T)
    span = float(time_T[-1] - time_T[0])
    faster = f", shown {speed:.0f} times faster" if speed > 1.5 else ""
    return Thumbnail(
        animation=_webp(pictures, milliseconds),
        still=_webp(pictures[len(pictures) // 2 : len(pictures) // 2 + 1]),
        size=pictures[0].size,
        text=f"{len(pictures)} frames over {span:.2f} s{faster}",
    )


def _shrink(frame_HWC: np.ndarray) -> Image.Image:
    picture = Image.fromarray(frame_HWC)
    picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS), Image.Resampling.BOX)
    return picture


def _durations(time_T: np.ndarray) -> tuple[list[int], float]:
    """Milliseconds of each frame, and how many times faster than real time the clip is shown."""
    gap_s = np.diff(time_T, append=2 * time_T[-1] - time_T[-2] if len(time_T) > 1 else time_T[-1] + 0.04)
    speed = max(1.0, float(gap_s.sum()) / _MOST_SECONDS)
    return np.clip(1000 * gap_s / speed, *_FRAME_MS).round().astype(int).tolist(), speed


def _webp(pictures: list[Image.Image], milliseconds: list[int] | None = None) -> str:
    file = io.BytesIO()
    animated = {"save_all": True, "append_images": pictures[1:], "duration": milliseconds, "loop": 0}
    pictures[0].save(file, "WEBP", quality=_QUALITY, method=4, **(animated if milliseconds else {}))
    return data_uri(file.getvalue(), "image/webp")
