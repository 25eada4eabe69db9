"""Command `kinemae finetune predict MODEL SOURCE OUT`."""

import argparse
import json
import sys
from dataclasses import replace

from kinemae.data_tools.command import writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.storage.location import local_out
from kinemae.finetune.inference.load import load
from kinemae.finetune.predict.config import PredictConfig
from kinemae.finetune.predict.predict import predict_source
from kinemae.finetune.predict.stream import is_stream, predict_live
from kinemae.pretrain.runtime.processes import (
    destroy_process_group,
    find_processes,
    init_process_group,
    share_cores,
)
from kinemae.pretrain.runtime.run_folder import run_lock
from kinemae.pretrain.runtime.settings import TimeoutsConfig

_LONGEST_WAIT_S = 7 * 86400.0  # of a process that has finished, for the others


def run_predict(arguments: argparse.Namespace) -> None:
    """Run the command."""
    config = load_config(PredictConfig, None, arguments.overrides)
    processes = find_processes(config.device)
    model = load(arguments.model, device=processes.device)
    model.with_head()
    out = local_out(arguments.out)
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    if is_stream(arguments.source, config):
        predict_live(model, arguments.source, out, config)
        return
    try:
        with run_lock(out, processes, TimeoutsConfig()):
            init_process_group(processes, TimeoutsConfig(validate_s=_LONGEST_WAIT_S))
            workers = share_cores(processes, workers=config.num_workers, cpu_threads=config.cpu_threads)
            config = replace(config, num_workers=workers)
            summary = predict_source(model, arguments.source, out, config, processes)
    finally:
        destroy_process_group()
    if arguments.json and processes.is_first:
        sys.stdout.write(json.dumps(summary, ensure_ascii=False) + "\n")
