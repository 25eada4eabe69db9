"""Predict the videos of a source: the functions below `kinemae finetune predict` and `VideoModel.predict`.

OUT/videos/NAME.json         scores over time, summary and segments of a video; NAME.mp4 with them
OUT/scores.csv, .parquet     of all videos, one row per window; also video_scores.* and segments.*
OUT/summary.json             model and settings, number of videos, unreadable videos
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.files import atomic_write_text, to_json_lines
from kinemae.data_tools.progress import progress
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.container import BadVideo
from kinemae.data_tools.stream.video_files import check_keys, open_video_files
from kinemae.data_tools.stream.video_reader import read_video, whole_file
from kinemae.finetune.evaluate import model_digest
from kinemae.finetune.inference.video_model import VideoModel
from kinemae.finetune.inference.windows import advise, open_source
from kinemae.finetune.predict.config import PredictConfig
from kinemae.finetune.predict.overlay import write_overlay
from kinemae.finetune.predict.scores import VideoPrediction, score_columns
from kinemae.finetune.predict.tables import write_tables
from kinemae.finetune.predict.videos import Prediction, PredictionFolder, check_settings, predict_videos
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import precision_on

FORMAT = 1

Value = TypeVar("Value")


def predict_file(model: VideoModel, video: str | Path, config: PredictConfig) -> VideoPrediction:
    """Predict one video, a file or a URL, without writing results.

    Raises:
        DataError: the video cannot be read.
        ValueError: the model has no head.
    """
    task_model, clip = model.with_head(), config.window(model.clip)
    with tempfile.TemporaryDirectory() as folder:
        index = open_video_files(video, Path(folder), workers=1, outage_s=config.outage_s).index
        if len(index) > 1:
            raise ValueError(f"{video}: expected a video, got a folder; fix: kinemae finetune predict")
        prediction = Prediction(
            model=task_model, index=index, clip=clip, config=config, about={"source": model.source}
        )
        return prediction.of_video()


def predict_source(
    model: VideoModel, source: str | Path, out: Path, config: PredictConfig, processes: Processes
) -> dict[str, Any]:
    """Collective. Predict every video of a source and write the results; continue an earlier prediction.

    Args:
        source: a video, a folder of videos, a URL of either, or a folder of shards.
        config: `num_workers` is the number of loader processes of this process.

    Returns:
        The content of OUT/summary.json.

    Raises:
        DataError: there is no video, or no readable one.
        ValueError: OUT holds predictions with another model or settings.
    """
    clip = config.window(model.clip)
    about = {"source": model.source, "digest": model_digest(model.with_head())}
    settings = {
        "format": FORMAT,
        "model": about["digest"],
        "window": asdict(clip),
        "windows": {**config.placement(), "spatial_crops": config.spatial_crops},
        "clips_per_device": config.clips_per_device,
        "precision": precision_on(config.engine, model.device),
        "threshold": config.threshold,
    }
    processes.on_first(lambda: check_settings(out / "predict.json", settings))
    workers = config.num_workers
    index, failed = open_source(source, out / "index", config, processes, out=out, workers=workers)
    check_keys(index)
    task_model = model.with_head()
    prediction = Prediction(
        model=task_model, index=index, clip=clip, config=config, about=about, workers=workers
    )
    if processes.is_first:
        advise(index, clip, config)
    failed = failed | predict_videos(prediction, out, processes)
    if config.overlay or (config.overlay is None and len(index) + len(failed) == 1):
        failed |= _write_overlays(prediction, out, processes)
    content = {**settings, "source": str(location(source)), "failed": failed}
    return processes.on_first(lambda: _summarize(prediction, out, content))


def _write_overlays(prediction: Prediction, out: Path, processes: Processes) -> dict[str, str]:
    """Collective. Write the mp4 of each video that has a prediction and no mp4."""
    folder = PredictionFolder(out, prediction)
    index = prediction.index
    todo = [
        position
        for position in range(len(index))
        if folder.is_done(position) and not folder.overlay(position).exists()
    ]
    todo = processes.broadcast_object(todo)
    own = todo[processes.rank :: processes.world]
    failed = {}
    for position in progress(own, total=len(own), what="draw"):
        sample = index.sample(position)
        try:
            source = whole_file(index, sample) or read_video(index, sample)
            write_overlay(folder.overlay(position), source, folder.read(position))
        except BadVideo as error:
            failed[sample.key] = str(error)
    return {name: reason for part in processes.all_gather_object(failed) for name, reason in part.items()}


def _summarize(prediction: Prediction, out: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write the tables and OUT/summary.json."""
    folder = PredictionFolder(out, prediction)
    done = [position for position in range(len(prediction.index)) if folder.is_done(position)]
    columns = score_columns(prediction.model.task)
    with writing_to(out):
        write_tables(out, columns, map(folder.read, done), content["failed"])
        content = {**content, "videos": len(done), "columns": list(columns)}
        atomic_write_text(out / "summary.json", to_json_lines(content))
    if not done:
        name, reason = next(iter(content["failed"].items()))
        raise DataError(
            f"{content['source']}: expected readable videos, got none; first error: {name}: {reason}"
        )
    log.info(
        "%d videos predicted, %d unreadable: %s", len(done), len(content["failed"]), out / "summary.json"
    )
    return content
