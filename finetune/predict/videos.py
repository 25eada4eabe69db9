"""Prediction of many videos: resumable, divided among processes, in bounded memory.

    OUT/predict.json       settings and model; a repeated command must have the same
    OUT/index/             the plain video files as a data set, see `video_files`
    OUT/videos/NAME.json   prediction of a video, see `VideoPrediction`; its presence marks the video as done
    OUT/partial/           outputs for parts of long videos, until all parts are done

The unit of work is a group of short videos that fill a forward pass, or a part of a long video. A forward
pass has windows of one unit only, so the results do not depend on interruptions and processes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.index import Sample, ShardIndex
from kinemae.data_tools.progress import progress
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.evaluation_clips import EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.windows import read_windows
from kinemae.finetune.adapt.lora import merged
from kinemae.finetune.evaluation.inference import Output, compute_outputs
from kinemae.finetune.predict.config import PredictConfig
from kinemae.finetune.predict.scores import VideoPrediction, score_video
from kinemae.finetune.task_model import TaskModel
from kinemae.pretrain.runtime.processes import Processes

_INFO = ("frames", "duration_s", "width", "height", "crc32")
_LONGEST_NAME = 220  # bytes; file systems have 255
_HEAD = 4096  # bytes of a result that hold its `info`


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model and the videos that it predicts.

    Attributes:
        clip: the window of the model.
        about: what identifies the model; copied into each result.
        workers: loader processes of this process.
    """

    model: TaskModel
    index: ShardIndex
    clip: ClipConfig
    config: PredictConfig
    about: dict[str, Any]
    workers: int = 0

    @cached_property
    def videos(self) -> EvaluationVideos:
        """The windows of the videos, as numbered items; a long video has several."""
        return EvaluationVideos(
            self.index,
            range(len(self.index)),
            clip=self.clip,
            temporal_clips=self.config.windows(self.clip),
            spatial_crops=self.config.spatial_crops,
        )

    def units(self) -> list[list[int]]:
        """Divide the items into units: a part of a long video, or short videos that fill a forward pass."""
        units: list[list[int]] = []
        missing = 0
        for number in range(len(self.videos)):
            views = self.videos.view_count(number)
            is_part = self.videos.locate(number)[2] > 1
            if missing <= 0 or is_part:
                units.append([])
                missing = self.config.clips_per_device
            units[-1].append(number)
            missing = 0 if is_part else missing - views
        return units

    def outputs(self, units: Sequence[Sequence[int]]) -> Iterator[list[Output]]:
        """Yield the outputs of the items of each unit."""
        device = next(self.model.parameters()).device
        numbers = [number for unit in units for number in unit]
        items = read_windows(self.videos, numbers, workers=self.workers, timeout_s=self.config.timeout_s)
        for unit in units:
            yield list(compute_outputs(self.model, islice(items, len(unit)), self.config, device))

    def combine(self, position: int, output_V: Tensor, time_VT: Tensor) -> VideoPrediction:
        """Make the prediction of a video from the outputs for all its views, in order."""
        sample = self.index.sample(position)
        crops, threshold = self.config.spatial_crops, self.config.threshold
        found = score_video(
            self.model.task,
            output_V,
            time_VT,
            crops=crops,
            threshold=threshold,
            duration_s=sample.duration_s,
        )
        info = {name: getattr(sample, name) for name in _INFO}
        return VideoPrediction(video=sample.key, info=info, model=self.about, **found)

    def of_video(self, position: int = 0) -> VideoPrediction:
        """Predict one video without writing files.

        Raises:
            BadVideo: it cannot be read.
        """
        units = [
            unit for unit in self.units() if any(self.videos.locate(each)[0] == position for each in unit)
        ]
        outputs = [each for unit in self.outputs(units) for each in unit if each.item.position == position]
        return self.join(position, [_checked(each) for each in outputs])

    def join(self, position: int, parts: Iterable[tuple[Tensor, Tensor]]) -> VideoPrediction:
        """Make the prediction of a video from the outputs and times of its parts."""
        outputs, times = zip(*parts, strict=True)
        return self.combine(position, torch.cat(outputs), torch.cat(times))


class PredictionFolder:
    """The results of a prediction in OUT/videos and OUT/partial."""

    def __init__(self, out: Path, prediction: Prediction):
        self.out = out
        self._prediction = prediction

    def result(self, position: int) -> Path:
        """The file of a video's prediction."""
        return self._file(position, ".json")

    def overlay(self, position: int) -> Path:
        """The file of a video's mp4 with its prediction."""
        return self._file(position, ".mp4")

    def read(self, position: int) -> VideoPrediction:
        """Read the prediction of a video."""
        return VideoPrediction.from_json(self.result(position).read_text(encoding="utf-8"))

    def is_done(self, position: int) -> bool:
        """Check whether a video has a prediction, of its present content."""
        try:
            with self.result(position).open(encoding="utf-8") as file:
                return f'"crc32": {self._sample(position).crc32}}}' in file.read(_HEAD)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def todo(self) -> list[list[int]]:
        """List the units with an item that is not done."""
        done = [self.is_done(position) for position in range(len(self._prediction.index))]
        videos = self._prediction.videos

        def is_missing(number: int) -> bool:
            position, _, parts = videos.locate(number)
            return not done[position] and not (parts > 1 and self._part(number).exists())

        return [unit for unit in self._prediction.units() if any(map(is_missing, unit))]

    def write(self, units: Sequence[Sequence[int]]) -> Iterator[dict[str, str]]:
        """Predict units; yield the unreadable videos of each, with the reasons."""
        for unit, outputs in zip(units, self._prediction.outputs(units), strict=True):
            failed = {}
            for number, output in zip(unit, outputs, strict=True):
                position, _, parts = self._prediction.videos.locate(number)
                try:
                    output_V, time_VT = _checked(output)
                except BadVideo as error:
                    failed[output.item.key] = str(error)
                    log.warning("%s cannot be read: %s", output.item.key, error)
                    continue
                if parts > 1:
                    file = self._part(number)
                    content = save({"output_V": output_V.contiguous(), "time_VT": time_VT.contiguous()})
                    partial = file.with_name(f"{file.name}.partial")
                    with writing_to(self.out):
                        file.parent.mkdir(parents=True, exist_ok=True)
                        partial.write_bytes(content)
                        partial.replace(file)
                else:
                    self._save(self._prediction.combine(position, output_V, time_VT), position)
            yield failed

    def long_videos(self) -> list[list[int]]:
        """List the items of each video with all parts done and without a prediction."""
        videos = self._prediction.videos
        found = []
        for position, group in groupby(range(len(videos)), key=lambda number: videos.locate(number)[0]):
            numbers = list(group)
            is_whole = len(numbers) > 1 and all(self._part(number).exists() for number in numbers)
            if is_whole and not self.is_done(position):
                found.append(numbers)
        return found

    def join(self, numbers: Sequence[int]) -> None:
        """Make the prediction of a long video from its parts, and remove these."""
        position = self._prediction.videos.locate(numbers[0])[0]
        parts = [load_file(self._part(number)) for number in numbers]
        found = self._prediction.join(position, [(part["output_V"], part["time_VT"]) for part in parts])
        self._save(found, position)
        shutil.rmtree(self._part(numbers[0]).parent)

    def _save(self, found: VideoPrediction, position: int) -> None:
        file = self.result(position)
        with writing_to(self.out):
            file.parent.mkdir(parents=True, exist_ok=True)
            self.overlay(position).unlink(missing_ok=True)
            atomic_write_text(file, found.to_json())

    def _file(self, position: int, suffix: str) -> Path:
        """The file of a result; a name that leaves no space for suffixes ends with a digest instead."""
        key = self._sample(position).key
        path = self.out / "videos" / key
        if len(path.name.encode()) > _LONGEST_NAME:
            digest = hashlib.sha256(key.encode()).hexdigest()[:16]
            return path.with_name(f"{path.name[:40]}-{digest}{suffix}")
        return path.with_name(f"{path.name}{suffix}")

    def _part(self, number: int) -> Path:
        position, part, parts = self._prediction.videos.locate(number)
        sample = self._sample(position)
        digest = hashlib.sha256(f"{sample.key} {sample.crc32}".encode()).hexdigest()[:16]
        return self.out / "partial" / digest / f"{part:05d}-of-{parts:05d}.safetensors"

    def _sample(self, position: int) -> Sample:
        return self._prediction.index.sample(position)


def _checked(output: Output) -> tuple[Tensor, Tensor]:
    """The output for the views of an item and the times of their frames.

    Raises:
        BadVideo: the item could not be read.
    """
    if output.output_V is None:
        assert output.item.skipped is not None
        raise BadVideo(output.item.skipped.reason)
    return output.output_V, output.item.time_VT


def predict_videos(prediction: Prediction, out: Path, processes: Processes) -> dict[str, str]:
    """Collective. Predict all videos that have no prediction in OUT yet.

    Returns:
        The unreadable videos with the reasons, on every process.

    Raises:
        StorageUnavailable: a storage did not respond in time.
    """
    folder = PredictionFolder(out, prediction)
    todo = processes.broadcast_object(folder.todo() if processes.is_first else [])
    own = todo[processes.rank :: processes.world]
    failed: dict[str, str] = {}
    with merged(prediction.model):
        written = folder.write(own)
        for each in progress(written, total=len(own), what="predict", unit="part"):
            failed |= each
    failed = {name: reason for part in processes.all_gather_object(failed) for name, reason in part.items()}
    joined = processes.broadcast_object(folder.long_videos() if processes.is_first else [])
    for numbers in joined[processes.rank :: processes.world]:
        folder.join(numbers)
    processes.barrier()
    return failed


def check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a prediction, or compare them with those of an earlier one in the folder.

    Raises:
        DataError: the file cannot be written.
        ValueError: they differ.
    """
    wanted = json.loads(json.dumps(settings))
    if not file.exists():
        with writing_to(file.parent):
            atomic_write_text(file, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    for name in {**found, **wanted}:
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{file.parent}: expected the settings of the predictions that it holds, {name}="
                f"{json.dumps(found.get(name))}, got {json.dumps(wanted.get(name))}; fix: use the same model "
                "and settings, or another folder"
            )
