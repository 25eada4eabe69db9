"""Features in the layout of temporal action detection, as ActionFormer and OpenTAD read it.

    FOLDER/features/VIDEO.npy   (T, D); vector i covers `num_frames` frames from frame i * `feat_stride`
    FOLDER/annotations.json     {"database": {VIDEO: {subset, duration, fps, frame, annotations}}}
    FOLDER/category_idx.txt     names of the classes, one per line, by `label_id`
    FOLDER/provenance.json      "grid" has the values for the configs of the two systems

Both systems compute the time of a vector from its number, so windows must have exactly equal steps. The rest
of a video, shorter than a step, has no vector.
"""

import json
import shutil
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.manifest.videos import is_video
from kinemae.data_tools.stream.frame_sampling import ClipConfig, SlidingClips, equal_steps_end_s
from kinemae.data_tools.stream.video_files import check_keys
from kinemae.finetune.features.config import FeatureConfig
from kinemae.finetune.features.files import read_video_features
from kinemae.finetune.labels.segments import Segments, class_names, read_segments
from kinemae.pretrain.exported_model import EncoderDescription


def feature_grid(
    config: FeatureConfig, clip: ClipConfig, windows: int | SlidingClips, description: EncoderDescription
) -> dict[str, Any]:
    """The values that the configs of the two systems need, in frames of the source, or of `clip.fps`.

    Raises:
        ValueError: windows do not slide, the steps are not a whole number of frames, or slices do not have
            equal steps.
    """
    if isinstance(windows, int):
        raise ValueError(
            "temporal_clips: expected sliding windows for a folder of ActionFormer, whose vectors have equal "
            f"steps, got {windows} per video; fix: set stride or fps, or give OUT the suffix .parquet or .npz"
        )
    stride = 1 if clip.fps else clip.stride
    if config.step_s is None:
        step = clip.frames * stride * (1 - config.overlap)
    elif clip.fps:
        step = config.step_s * clip.fps
    else:
        raise ValueError(
            "step_s: expected null, or fps too, for a folder of ActionFormer, whose steps are counted in "
            f"frames, got {config.step_s:g}; fix: set overlap instead, or set fps"
        )
    if abs(step - round(step)) > 1e-6 or round(step) < 1:
        key = "overlap" if config.step_s is None else "step_s"
        raise ValueError(
            f"{key}: expected a step of a whole number of frames for a folder of ActionFormer, got {step:g}; "
            f"fix: choose another {key}"
        )
    step, frames = round(step), clip.frames
    if config.kind == "slices":
        if step != clip.frames * stride:
            raise ValueError(
                "overlap: expected 0 with kind=slices for a folder of ActionFormer, whose vectors have equal "
                "steps, got other windows; fix: omit overlap and step_s, or set kind=clip"
            )
        frames = description.shape.patch[0]
        step = frames * stride
    covered = (frames - 1) * stride + 1
    width = description.shape.width * (2 if config.pool == "statistics" else 1)
    found = {"feat_stride": step, "num_frames": covered, "offset_frames": covered / 2, "input_dim": width}
    return {**found, "default_fps": clip.fps}


def aligned(index: ShardIndex, clip: ClipConfig, windows: int | SlidingClips) -> ShardIndex:
    """The data set cut so that sliding clips have exactly the configured step.

    Clips may begin at any frame, also in layouts with reference frames.
    """
    assert isinstance(windows, SlidingClips), "checked in feature_grid"
    every = range(len(index))
    plain = index.view(
        every, columns={"reference_stride": [1] * len(index), "reference_phase": [0] * len(index)}
    )
    ends_s = [equal_steps_end_s(plain.sample(position), clip, windows) for position in every]
    return plain.view(every, window_s=[(0.0, end_s) for end_s in ends_s])


def write_detection_folder(
    out: Path,
    parts: Sequence[Path],
    index: ShardIndex,
    skipped: Container[str],
    config: FeatureConfig,
    provenance: dict[str, Any],
) -> None:
    """Write the folder; it is complete or absent.

    Raises:
        DataError: a key of a video is no name for a file, or segments are wrong.
    """
    names = video_names(index)
    scratch = out.with_name(f"{out.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    for video, features_TD in read_video_features(parts, skipped):
        file = scratch / "features" / f"{names[video]}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, features_TD)
    classes, database = _database(index, names, skipped, config, provenance["grid"]["default_fps"])
    text = json.dumps({"version": "KineMAE", "database": database}, indent=1, ensure_ascii=False)
    atomic_write_text(scratch / "annotations.json", text + "\n")
    atomic_write_text(scratch / "category_idx.txt", "".join(f"{name}\n" for name in classes))
    text = json.dumps(provenance, indent=1, ensure_ascii=False)
    atomic_write_text(scratch / "provenance.json", text + "\n")
    if out.exists():
        shutil.rmtree(out)
    scratch.rename(out)


def video_names(index: ShardIndex) -> dict[str, str]:
    """Names of files by key: without the suffix of the video if they stay different.

    Raises:
        DataError: a key leads out of the folder.
    """
    check_keys(index)
    keys = index.column("key").tolist()
    short = [key.rpartition(".")[0] if is_video(PurePosixPath(key).name) else key for key in keys]
    return dict(zip(keys, short if len(set(short)) == len(keys) else keys, strict=True))


def _database(
    index: ShardIndex,
    names: dict[str, str],
    skipped: Container[str],
    config: FeatureConfig,
    fps: float | None,
) -> tuple[Sequence[str], dict[str, Any]]:
    """Names of the classes, and the entry of each video."""
    classes: Sequence[str] = ()
    segments: Sequence[Segments | None] = [None] * len(index)
    if config.segments is not None:
        segments = read_segments(index, config.segments, key=f"segments={config.segments}")
        classes = class_names(segments)
    database = {}
    for position, of_video in enumerate(segments):
        sample = index.sample(position)
        if sample.key in skipped:
            continue
        rate = fps or sample.source_fps
        database[names[sample.key]] = {
            "subset": config.subset,
            "duration": sample.duration_s,
            "fps": rate,
            "frame": round(sample.duration_s * rate),
            "annotations": _annotations(of_video, classes),
        }
    return classes, database


def _annotations(segments: Segments | None, classes: Sequence[str]) -> list[dict[str, Any]]:
    if segments is None:
        return []
    return [
        {"segment": time_2, "label": label, "label_id": classes.index(label)}
        for time_2, label in zip(segments.time_E2.tolist(), segments.labels, strict=True)
    ]
