"""The commands `kinemae finetune probe` and `kinemae finetune knn`.

RUN/features/ENCODER/KIND/SPLIT/    feature stores, see `store.py`; all methods share them
RUN/METHOD/result.json              the result; with several encoders, RUN/METHOD/ENCODER/result.json
RUN/METHOD/predictions.parquet      predictions of every validation sample, beside result.json
RUN/METHOD/curve.json, curve.svg    with several encoders, their scores by pretraining step
RUN/METHOD/model/, config.yaml      the chosen linear or attentive head with its encoder
RUN/METHOD/probe.yaml               the config
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config, to_yaml
from kinemae.data_tools.config_files import find_config
from kinemae.data_tools.files import atomic_write_text, to_json_lines
from kinemae.finetune.compare import RESULT_NAME
from kinemae.finetune.evaluation.predictions import FILE, write_predictions
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.finetune.probe.curve import curve, curve_svg
from kinemae.finetune.probe.data import Outcome
from kinemae.finetune.probe.encoders import find_encoders
from kinemae.finetune.probe.few_shot import few_shot_scores
from kinemae.finetune.probe.methods import run_method
from kinemae.finetune.probe.results import build_result, predictions_of
from kinemae.finetune.probe.saving import save_probe
from kinemae.finetune.probe.stores import (
    ProbedEncoder,
    check_readable,
    make_stores,
    prepare_encoder,
    prepare_external,
)
from kinemae.finetune.tasks.classification import Classification
from kinemae.pretrain.runtime.abort import abort_on_error
from kinemae.pretrain.runtime.processes import Processes, find_processes, init_process_group, share_cores
from kinemae.pretrain.runtime.run_folder import run_lock

CURVE_NAME = "curve.json"
_SAVED = ("linear", "attentive")


def run_probe(arguments: argparse.Namespace) -> None:
    """Run `kinemae finetune probe [CONFIG] a.b=c ...`."""
    _run(arguments, [])


def run_knn(arguments: argparse.Namespace) -> None:
    """Run `kinemae finetune knn [CONFIG] a.b=c ...`: a probe with method=knn."""
    _run(arguments, ["method=knn"])


def _run(arguments: argparse.Namespace, fixed: Sequence[str]) -> None:
    config = load_probe_config(arguments, fixed)
    processes = find_processes(config.engine.device)
    probed = prepare(config, processes)
    if arguments.dry_run:
        text = to_json_lines(_plan(config, probed))
        sys.stdout.write(text if arguments.json else f"{to_yaml(config)}\n{text}")
        return
    run_dir = Path(config.run_dir)
    with (
        abort_on_error(processes),
        writing_to(run_dir),
        run_lock(run_dir, processes, config.timeouts),
    ):
        init_process_group(processes, config.timeouts)
        workers = share_cores(
            processes, workers=config.data.num_workers, cpu_threads=config.engine.cpu_threads
        )
        for one in probed:
            if one.source is not None:
                make_stores(config, one, processes, workers=workers)
        if processes.is_first:
            results = [_probe(config, one, processes, folder=_folder(config, one, probed)) for one in probed]
            _report(config, probed, results, as_json=arguments.json)


def prepare(config: ProbeConfig, processes: Processes) -> list[ProbedEncoder]:
    """Check config, encoders, data and existing stores before a process group starts.

    Raises:
        ValueError: invalid config, or a store of other features.
        DataError: unusable data.
        CheckpointError: unusable encoder.
    """
    if config.is_external:
        return [prepare_external(config)]
    sources = find_encoders(
        config.encoders, config.clip, is_random=config.weights == "random", seed=config.seed
    )
    return [prepare_encoder(config, source, processes) for source in sources]


def load_probe_config(arguments: argparse.Namespace, fixed: Sequence[str]) -> ProbeConfig:
    """The config of a probe.

    Args:
        fixed: overrides of the command, which the user may not change.
    """
    found = None if arguments.config is None else find_config(arguments.config, "finetune")
    for override in fixed:
        key, _, value = override.partition("=")
        given = [each for each in arguments.overrides if each.partition("=")[0] == key and each != override]
        if given:
            raise ValueError(
                f"{key}: expected {value} or no such key, got {given[0]}; fix: use `finetune probe`"
            )
    return load_config(ProbeConfig, found, [*arguments.overrides, *fixed])


def _plan(config: ProbeConfig, probed: Sequence[ProbedEncoder]) -> dict[str, Any]:
    """The plan that `--dry-run` prints."""
    return {
        "run_dir": config.run_dir,
        "method": config.method,
        "training_samples": len(probed[0].train.index),
        "validation_samples": len(probed[0].validation.index),
        "encoders": [
            {
                "name": one.name,
                "layers": one.layers,
                "features": {split.name: split.state for split in one.splits},
            }
            for one in probed
        ],
    }


def _folder(config: ProbeConfig, one: ProbedEncoder, probed: Sequence[ProbedEncoder]) -> Path:
    """The folder of one encoder's result."""
    folder = Path(config.run_dir) / config.method
    return folder if len(probed) == 1 else folder / one.name


def _probe(config: ProbeConfig, one: ProbedEncoder, processes: Processes, *, folder: Path) -> dict[str, Any]:
    """Run the method on one encoder's features and write its result."""
    begin = time.monotonic()
    train, validation = one.train.open(one.task), one.validation.open(one.task)
    for data in (train, validation):
        check_readable(config, data)
    width = train.features.layers[one.layers[0]].shape[-1] if one.source is None else (
        one.source.description.shape.width
    )  # fmt: skip
    outcome = run_method(config, one.task, train, validation, width=width, device=processes.device)
    trained_s = time.monotonic() - begin
    result = build_result(config, one, train, validation, outcome)
    if config.few_shot.is_on:
        assert isinstance(one.task, Classification), "checked before"
        result["probe"]["few_shot"] = few_shot_scores(config, one.task, train, validation, outcome)
    result["probe"]["cost"] = {
        "encoding_s": round(train.features.seconds + validation.features.seconds, 3),
        "training_s": round(trained_s, 3),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if config.save_model and config.method in _SAVED and one.source is not None:
        save_probe(config, one, outcome, folder)
    atomic_write_text(folder / "probe.yaml", to_yaml(config))
    write_predictions(predictions_of(config, validation, outcome, result), folder / FILE)
    atomic_write_text(folder / RESULT_NAME, to_json_lines(result))
    _log_score(one, outcome, result, folder)
    return result


def _log_score(one: ProbedEncoder, outcome: Outcome, result: dict[str, Any], folder: Path) -> None:
    metric, found = result["metric"], result["probe"]
    chosen = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                       for name, value in outcome.chosen.items())  # fmt: skip
    limits = found["interval"]["ci95"]
    shown = "" if limits is None else f" (95 % interval {limits[0]:.4g} - {limits[1]:.4g})"
    log.info(
        "%s: %s %.4g%s, constant output %.4g; chosen on training data: %s; %s",
        *(one.name, metric, result[metric], shown, found["floor"]["value"], chosen, folder / RESULT_NAME),
    )
    for row in found.get("few_shot", ()):
        setting = f"{row['per_class']} per class" if "per_class" in row else f"fraction {row['fraction']:g}"
        spread = "" if row["std"] is None else f" +- {row['std']:.4g}"
        log.info(
            "few-shot, %s: %s %.4g%s over %d draws", setting, metric, row["mean"], spread, len(row["scores"])
        )


def _report(
    config: ProbeConfig, probed: Sequence[ProbedEncoder], results: list[dict[str, Any]], *, as_json: bool
) -> None:
    """Write the curve of several encoders, and print the result if requested."""
    printed: Any = results[0]
    if len(results) > 1:
        printed = {"curve": curve(results, [one.name for one in probed]), "results": results}
        folder = Path(config.run_dir) / config.method
        text = json.dumps(printed["curve"], indent=1, ensure_ascii=False)
        atomic_write_text(folder / CURVE_NAME, f"{text}\n")
        figure = curve_svg(printed["curve"])
        if figure is not None:
            atomic_write_text(folder / "curve.svg", figure)
        for row in printed["curve"]:
            log.info("%-24s step %s  %s %.4g", row["encoder"], row["step"], row["metric"], row["value"])
    if as_json:
        sys.stdout.write(json.dumps(printed, ensure_ascii=False) + "\n")
