"""Scores of frozen encoders and of the floors, fold by fold, by the probe's own functions.

The clips are encoded once. A fold is a choice of samples of these features, so all folds and poolings use
the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemae.data_tools.command import DataError
from kinemae.data_tools.components import Component
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.finetune.probe.config import GridConfig, LogisticConfig, ProbeConfig, ProbeData, SelectConfig
from kinemae.finetune.probe.data import LabelledFeatures
from kinemae.finetune.probe.encode import FixedViews, LayerEncoder, encoded
from kinemae.finetune.probe.methods import metric_of, run_method
from kinemae.finetune.probe.store import Features
from kinemae.finetune.tasks.base import build_task
from kinemae.pretrain.exported_model import load_encoder
from tests.benchmarks.real_clips import FLOORS, pixels

POOLS = ("mean", "statistics", "slices")
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a probe.

    Attributes:
        folds: for each fold, the groups that are held out.
        seed: of inner folds and heads.
    """

    folds: list[list[str]]
    c: list[float]
    max_iter: int
    seed: int


def probe_encoder(encoder: Path, shards: Path, settings: Settings) -> dict[str, Any]:
    """Score an encoder with logistic regression on each pooling."""
    features = encode(encoder, shards, kind="slices")
    index = open_index(shards)
    return {f"frozen, {pool}": logistic(features, index, settings, pool=pool) for pool in POOLS}


def attend_encoder(
    encoder: Path, shards: Path, folds: Sequence[Sequence[str]], arguments: Sequence[str]
) -> dict[str, Any]:
    """Score an encoder with attentive probes.

    Args:
        arguments: overrides of `kinemae finetune probe`.
    """
    given = ["run_dir=unused", "encoder=unused", "data.train=unused", "data.validation=unused", *arguments]
    config = load_config(ProbeConfig, None, ["method=attentive", *given])
    features = encode(encoder, shards, kind="tokens")
    return {"attentive": score_folds(config, features, open_index(shards), folds)}


def score_floors(shards: Path, settings: Settings) -> dict[str, Any]:
    """Score logistic regressions on small grey frames."""
    index = open_index(shards)
    grey = [pixels(Path(name)) for name in index.column("name")]
    scores = {}
    for name, function in FLOORS.items():
        values_SVX = np.stack([function(grey_THW) for grey_THW in grey])[:, None]
        scores[name] = logistic(_features(values_SVX, kind="vectors"), index, settings, pool="mean")
    return scores


def encode(encoder_folder: Path, shards: Path, *, kind: str) -> Features:
    """Encode one view of each clip; keep the statistics of its slices ("slices") or all "tokens"."""
    encoder, description = load_encoder(encoder_folder)
    layer = description.shape.depth - 1
    index = open_index(shards)
    reader = FixedViews(index, description.clip, temporal_clips=1, spatial_crops=1)
    encode_clips = LayerEncoder(
        encoder=encoder.eval().requires_grad_(False),
        description=description,
        layers=[layer],
        kind=kind,
        is_bf16=False,
        clips_per_device=16,
    )
    rows: list[Tensor] = []
    items = (reader.item(number, {}, lambda key: None) for number in range(len(index)))
    for item, _, layers in encoded(items, encode_clips, CPU):
        if item.skipped:
            raise DataError(
                f"{index.sample(item.position).key}: expected a readable video, got {item.skipped}; "
                "fix: remove it from the folder"
            )
        rows.append(layers[layer])
    return _features(torch.stack(rows)[:, None].numpy(), kind=kind)


def logistic(features: Features, index: ShardIndex, settings: Settings, *, pool: str) -> dict[str, Any]:
    """Score logistic regression on one pooling: "top1" and the chosen "c" of each fold.

    C is chosen by cross-validation inside the training part, on folds of whole groups.
    """
    config = replace(
        _config("logistic", settings.seed),
        grid=GridConfig(pool=[pool]),
        logistic=LogisticConfig(c=settings.c, max_iter=settings.max_iter),
    )
    return score_folds(config, features, index, settings.folds)


def score_folds(
    config: ProbeConfig, features: Features, index: ShardIndex, folds: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Run the method of a config on each fold; return "top1" in per cent and the "chosen" settings."""
    task = build_task(Component(name="classification"))
    task.fit(index, key="clips")
    targets, group_S = task.read(index, key="clips"), index.column("group").astype(str)
    found: dict[str, Any] = {"top1": [], "chosen": []}
    for held_out in folds:
        is_held_S = np.isin(group_S, list(held_out))
        inner = SelectConfig(folds=min(5, len(set(group_S[~is_held_S]))))
        train, validation = (
            LabelledFeatures(
                features=replace(features, readable=np.flatnonzero(is_in_S)),
                targets=targets,
                index=index,
                key="clips",
            )
            for is_in_S in (~is_held_S, is_held_S)
        )
        width = features.layers[0].shape[-1]
        outcome = run_method(replace(config, select=inner), task, train, validation, width=width, device=CPU)
        top1 = metric_of(task, outcome.predictions, validation)
        assert top1 is not None, "every fold has clips"
        found["top1"].append(100 * top1)
        found["chosen"].append(outcome.chosen)
    return found


def _config(method: Any, seed: int) -> ProbeConfig:
    """A config for `run_method`, which reads no folders."""
    data = ProbeData(train="unused", validation="unused")
    return ProbeConfig(run_dir="unused", encoder="unused", data=data, method=method, seed=seed)


def _features(values_SVX: np.ndarray, *, kind: str) -> Features:
    rows = len(values_SVX)
    return Features(
        layers={0: values_SVX.astype(np.float32)},
        kind=kind,
        dtype="float32",
        time_SVT=np.full((rows, 1, 1), np.nan),
        readable=np.arange(rows),
    )
