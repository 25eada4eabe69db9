"""Representation monitor: correct numbers at the configured steps, without an effect on the training."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kinemae.data_tools.command import DataError
from kinemae.data_tools.index import ShardIndex, open_index, write_index
from kinemae.data_tools.stream.evaluation_clips import EvaluationVideos
from kinemae.data_tools.stream.yuv_to_rgb import to_luma
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.model.tokens import normalize, patchify
from kinemae.pretrain.representation_monitor import MonitorConfig, _spread, spread_videos
from kinemae.pretrain.runtime.metrics import MetricsWriter, read_metrics
from kinemae.pretrain.training import Plan, _representation_monitor, make_plan, run_pretraining

SmallConfig = Callable[..., PretrainConfig]
ALWAYS = {"feature_std", "token_std", "effective_rank", "token_rank", "cosine", "kept_tokens"}


def health_of(line: dict[str, Any]) -> dict[str, float]:
    return {
        name.removeprefix("monitor/"): value for name, value in line.items() if name.startswith("monitor/")
    }


def measured(plan: Plan, folder: Path) -> dict[str, float]:
    """Values that the monitor writes for the untrained model of a plan."""
    folder.mkdir()
    writer = MetricsWriter(folder, first_step=0, steps=plan.config.steps)
    _representation_monitor(plan).after_step(plan.config.steps - 1, writer)
    writer.write([{"step": 0, "loss": 1.0, "lr": 1.0}])
    writer.close()
    return health_of(read_metrics(folder / "metrics.jsonl")[0])


def probe_of(synth_shards: Path, *, validation: str = "validation") -> list[str]:
    return [
        f"monitor.knn_train={synth_shards / 'train'}",
        f"monitor.knn_validation={synth_shards / validation}",
        "monitor.knn_videos=6",
        "monitor.neighbours=3",
    ]


@pytest.mark.slow
def test_the_monitor_does_not_change_the_training(
    small_config: SmallConfig, synth_shards: Path, tmp_path: Path
) -> None:
    """With noise, drop path and a teacher, which has its own training mode."""
    lines, weights = {}, {}
    for name, overrides in {
        "with": ["monitor.every_steps=2", "monitor.clips=3", *probe_of(synth_shards)],
        "without": ["monitor.every_steps=0"],
    }.items():
        config = small_config(
            f"run_dir={tmp_path / name}", "target.name=features", "model.drop_path=0.3", *overrides
        )
        plan = make_plan(config)
        run_pretraining(plan)
        lines[name] = read_metrics(tmp_path / name / "metrics.jsonl")
        weights[name] = plan.model.state_dict()
    losses, others = ([line["loss"] for line in lines[name]] for name in ("with", "without"))
    assert losses == others
    assert all(torch.equal(weight, weights["without"][name]) for name, weight in weights["with"].items())
    assert [bool(health_of(line)) for line in lines["with"]] == [False, True] * 3
    assert not any(health_of(line) for line in lines["without"])
    last = health_of(lines["with"][-1])
    assert last.keys() >= ALWAYS | {"knn_accuracy", "ema_distance"}
    assert last["ema_distance"] > 0 and 0 <= last["knn_accuracy"] <= 1


def features(plan: Plan, index: ShardIndex, positions: Sequence[int]) -> Tensor:
    """Tokens of the centre crops of all clips, x_BND, from the encoder."""
    videos = EvaluationVideos(index, positions, clip=plan.config.clip, temporal_clips=1, spatial_crops=1)
    items = [videos.read(i, quarantined={}, on_sample=lambda key: None) for i in range(len(positions))]
    clip_BCTHW = torch.cat([item.pixels.rgb() for item in items])  # type: ignore[union-attr]
    plan.model.encoder.eval()
    with torch.no_grad():
        return plan.model.encoder(normalize(patchify(clip_BCTHW, plan.model.encoder.shape.patch)), None)


def test_the_statistics_equal_numpy_on_the_features_of_the_encoder(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    plan = make_plan(small_config("monitor.clips=5", "noise.args.std=5.0"))
    plan.model.train()
    found = measured(plan, tmp_path / "measured")
    assert isinstance(plan.index, ShardIndex)
    x_BND = features(plan, plan.index, [0, 8, 16, 24, 32]).double().numpy()  # 5 of 40, evenly
    pooled_BD, token_RD = x_BND.mean(axis=1), x_BND.reshape(-1, x_BND.shape[2])
    assert found["feature_std"] == pytest.approx(pooled_BD.std(axis=0).mean(), rel=1e-4)
    assert found["token_std"] == pytest.approx(token_RD.std(axis=0).mean(), rel=1e-4)
    unit_BD = pooled_BD / np.linalg.norm(pooled_BD, axis=1, keepdims=True)
    assert found["cosine"] == pytest.approx((unit_BD @ unit_BD.T)[np.triu_indices(5, 1)].mean(), rel=1e-6)
    for name, rows in (("effective_rank", pooled_BD), ("token_rank", token_RD)):
        values = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
        share = values[values > 1e-9] / values.sum()
        assert found[name] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
    assert found["kept_tokens"] == 1.0


def test_kept_tokens_is_the_fraction_kept_of_whole_clips(small_config: SmallConfig, tmp_path: Path) -> None:
    plan = make_plan(
        small_config("monitor.clips=4", "pruning={name: run_length, args: {keep: 0.5, threshold: 20.0}}")
    )
    shares = [
        plan.split.pruning.score_tokens(to_luma(item.pixels), plan.split.patch)
        .is_kept_BN.float()
        .mean()
        .item()
        for videos in _representation_monitor(plan).videos
        for item in videos
    ]
    found = measured(plan, tmp_path / "measured")
    assert found["kept_tokens"] == pytest.approx(np.mean(shares)) and 0 < found["kept_tokens"] < 1


def test_kept_tokens_of_learned_pruning_is_the_fraction_above_the_threshold(
    small_config: SmallConfig, tmp_path: Path
) -> None:
    plan = make_plan(small_config("monitor.clips=4", "pruning={name: learned, args: {keep: 0.5}}"))
    threshold = plan.model.encoder.scorer.threshold
    shares = []
    for i, value in enumerate((-1e6, 0.0, 1e6)):
        threshold.data.fill_(value)
        shares.append(measured(plan, tmp_path / str(i))["kept_tokens"])
    assert shares[0] == 1.0 and shares[2] == 0.0 and 0 < shares[1] < 1


def test_the_nearest_neighbour_of_a_video_among_the_same_videos_is_itself(
    small_config: SmallConfig, synth_shards: Path, tmp_path: Path
) -> None:
    probe = [*probe_of(synth_shards, validation="train"), "monitor.neighbours=1"]
    plan = make_plan(small_config("monitor.clips=2", *probe))
    assert measured(plan, tmp_path / "measured")["knn_accuracy"] == 1.0


def test_clips_are_encoded_one_at_a_time(
    small_config: SmallConfig, synth_shards: Path, tmp_path: Path
) -> None:
    """Memory does not grow with `monitor.clips` or `monitor.knn_videos`."""
    plan = make_plan(small_config("monitor.clips=7", *probe_of(synth_shards)))
    sizes = []
    plan.model.encoder.blocks[0].register_forward_hook(
        lambda block, inputs, output: sizes.append(len(inputs[0]))
    )
    measured(plan, tmp_path / "measured")
    assert sizes == [1] * (7 + 2 * 6 + 2 * 6)


def test_unreadable_videos_are_ignored(small_config: SmallConfig, synth_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(synth_shards / "train", tmp_path / "zeros")
    for shard in open_index(tmp_path / "zeros").shards:
        path = tmp_path / "zeros" / shard.name
        path.write_bytes(bytes(path.stat().st_size))
    probe = probe_of(synth_shards)
    plan = make_plan(small_config("monitor.clips=3", *probe, f"data.shards={tmp_path / 'zeros'}"))
    found = measured(plan, tmp_path / "measured")
    assert found.keys() == {"knn_accuracy"} and found["knn_accuracy"] is not None
    plan = make_plan(small_config("monitor.clips=3", *probe, f"monitor.knn_validation={tmp_path / 'zeros'}"))
    assert measured(plan, tmp_path / "again")["knn_accuracy"] is None  # a number that is none


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_steps": -1}, "monitor.every_steps must be 0 .never. or more, got -1"),
        ({"clips": 1}, "monitor.clips must be at least 2, got 1"),
        ({"knn_videos": 1}, "monitor.knn_videos must be at least 2, got 1"),
        ({"neighbours": 0}, "monitor.neighbours must be at least 1, got 0"),
        ({"knn_train": "x"}, "monitor.knn_validation: expected a folder, got null"),
        ({"knn_validation": "x"}, "monitor.knn_train: expected a folder, got null"),
    ],
)
def test_a_wrong_value_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MonitorConfig(**arguments)


def relabelled(folder: Path, out: Path, *, label: int | None, classes: Sequence[str] | None) -> Path:
    """Copy a data set with the same label for every sample, or with other class names."""
    shutil.copytree(folder, out)
    index = open_index(folder)
    samples = [index.sample(i) for i in range(len(index))]
    samples = samples if label is None else [replace(sample, label=label) for sample in samples]
    write_index(out, samples, index.shards, classes or index.classes, index.made_by)
    return out


def test_unusable_labelled_data_is_refused_before_the_run(
    small_config: SmallConfig, synth_shards: Path, tmp_path: Path
) -> None:
    classes = open_index(synth_shards / "train").classes
    folders = {
        "unlabelled": synth_shards / "unlabelled",
        "one": relabelled(synth_shards / "train", tmp_path / "one", label=2, classes=None),
        "others": relabelled(
            synth_shards / "validation", tmp_path / "others", label=None, classes=classes[::-1]
        ),
        "missing": tmp_path / "missing",
        "good": synth_shards / "train",
    }
    for train, validation, message in [
        ("unlabelled", "good", f"monitor.knn_train={folders['unlabelled']}: expected labelled videos"),
        ("good", "unlabelled", f"monitor.knn_validation={folders['unlabelled']}: expected labelled videos"),
        ("one", "good", f"expected at least two classes, got only '{classes[2]}' in the 32 selected"),
        ("good", "others", "expected the classes of monitor.knn_train="),
        ("missing", "good", f"no folder of shards at {folders['missing']}"),
    ]:
        config = small_config(
            f"monitor.knn_train={folders[train]}", f"monitor.knn_validation={folders[validation]}"
        )
        with pytest.raises(DataError) as caught:
            make_plan(config)
        assert message in str(caught.value)


def test_videos_are_evenly_spaced_in_a_data_set_and_over_a_mixture(
    small_config: SmallConfig, synth_shards: Path
) -> None:
    assert _spread(range(10), 4) == [0, 2, 5, 7]
    assert _spread([3, 5, 9], 8) == [3, 5, 9]
    mixture = {str(synth_shards / name): 1 for name in ("train", "unlabelled", "validation")}
    plan = make_plan(small_config("data.shards=null", f"data.mixture={mixture}"))
    found = spread_videos(plan.index, 8, clip=plan.config.clip)
    assert [len(videos.positions) for videos in found] == [3, 3, 2]
    assert sum(len(list(videos)) for videos in found) == 8
