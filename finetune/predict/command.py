"""`kinemae finetune predict MODEL SOURCE OUT`: scores over time of videos, folders, URLs, shards or a camera."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.files import atomic_write_text
from kinemae.data_tools.index import DATASET_NAME, ShardIndex, open_index
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.stream.video_files import VideoFiles, open_video_files
from kinemae.finetune.evaluate import model_digest
from kinemae.finetune.inference.load import load
from kinemae.finetune.inference.video_model import VideoModel
from kinemae.finetune.predict.config import PredictConfig
from kinemae.finetune.predict.overlay import write_overlays
from kinemae.finetune.predict.scores import VideoPrediction, score_columns
from kinemae.finetune.predict.tables import write_tables
from kinemae.finetune.predict.videos import Prediction, PredictionFolder, check_settings, predict_videos
from kinemae.pretrain.runtime.processes import (
    Processes,
    destroy_process_group,
    find_processes,
    init_process_group,
    share_cores,
)
from kinemae.pretrain.runtime.settings import TimeoutsConfig, precision_on

FORMAT = 1
_LONGEST_WAIT_S = 7 * 86400.0  # of a process that is done for the others


def run_predict(arguments: argparse.Namespace) -> None:
    """Run the command."""
    config = load_config(PredictConfig, None, arguments.overrides)
    processes = find_processes(config.device)
    model = load(arguments.model, device=processes.device)
    model.with_head()
    out = Path(arguments.out)
    if is_live(arguments.source, config):
        ...
        return
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    timeouts = TimeoutsConfig(validate_s=_LONGEST_WAIT_S)
    try:
        init_process_group(processes, timeouts)
        workers = share_cores(processes, workers=config.num_workers, cpu_threads=config.cpu_threads)
        summary = predict_source(model, arguments.source, out, replace(config, num_workers=workers), processes)
    finally:
        destroy_process_group()
    if arguments.json and processes.is_first:
        sys.stdout.write(json.dumps(summary, ensure_ascii=False) + "\n")
