"""`kinemae pretrain preview`: its pictures and counts equal the input of training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from kinemae.data_tools.command import run_program
from kinemae.data_tools.config import load_config
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.yuv_to_rgb import to_luma
from kinemae.pretrain.__main__ import PROGRAM
from kinemae.pretrain.clip_grid import HIDDEN, NOT_PREDICTED, PRUNED, PRUNED_HIDDEN, tint, token_mask
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.model.tokens import patchify
from kinemae.pretrain.preview import preview_columns, read_clips
from kinemae.pretrain.training import Plan, clips_of_pictures, make_plan, training_clips
from tests.conftest import run_module
from tests.forked import run_forked

CONFIG, DATA = 2, 3
PATCH = (2, 8, 8)
SMALL = """
steps: 4
data: {num_workers: 0}
clip: {frames: 8, stride: 1, size: 32}
batch: {global_clips: 4}
model: {size: tiny, patch_size: 8, width: 24, depth: 1, decoder_width: 24, decoder_depth: 1}
masking: {name: tube, args: {ratio: 0.5}}
pictures: {clips: 3, every_steps: 0}
engine: {device: cpu, cpu_threads: 1}
"""


@pytest.fixture
def config_file(tmp_path: Path, synth_shards: Path) -> Path:
    path = tmp_path / "small.yaml"
    data = f"data: {{shards: {synth_shards / 'unlabelled'}, "
    path.write_text(f"run_dir: {tmp_path / 'run'}\n" + SMALL.replace("data: {", data))
    return path


@pytest.fixture
def preview(config_file: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run the command with --json and return its output."""

    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert run_program(PROGRAM, ["preview", str(config_file), "--json", *arguments]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


@pytest.fixture
def drawn(config_file: Path) -> Callable[..., tuple[Plan, ClipBatch, dict[str, Tensor]]]:
    """A plan, its clips and the preview's columns by title, each as patches_BNP."""

    def draw(*overrides: str, step: int = 0) -> tuple[Plan, ClipBatch, dict[str, Tensor]]:
        plan = make_plan(load_config(PretrainConfig, config_file, list(overrides)))
        batch = read_clips(plan, step)
        columns = preview_columns(plan, batch)
        return plan, batch, {column.title: patchify(column.clip_BCTHW, PATCH) for column in columns}

    return draw


PRUNED_HALF = "pruning={name: run_length, args: {keep: 0.5}}"


def test_it_writes_a_picture_and_an_animation_and_prints_the_counts(
    preview: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    counts = preview(PRUNED_HALF)
    folder = tmp_path / "run" / "preview"
    assert counts["files"] == [str(folder / "preview.png"), str(folder / "preview.gif")]
    with Image.open(folder / "preview.gif") as animation, Image.open(folder / "preview.png") as picture:
        # clip, encoder input, pruned, to predict: 128 pixels each and 4 between; three clips
        assert animation.n_frames == 8 and animation.width == picture.width == 4 * 132
        head = animation.height - 3 * 132
        assert 0 < head < 60 and picture.height == head + 9 * 132  # at three moments each
    tokens = counts["tokens"]
    assert (tokens["grid"], tokens["slices"], tokens["rows"], tokens["columns"]) == (64, 4, 4, 4)
    assert (tokens["visible"], tokens["encoded"], tokens["pruned_visible"]) == (16, 16, 16)  # of 32
    assert (tokens["predicted"], tokens["pruned_hidden"]) == (8, 16)  # half of the remaining half
    assert counts["flops"]["training"] == 3 * (counts["flops"]["encoder"] + counts["flops"]["decoder"])
    parameters = counts["parameters"]
    assert parameters["all"] == parameters["encoder"] + parameters["decoder"]
    assert not dist.is_initialized() or dist.get_world_size() == 1


def test_the_counts_are_those_of_the_plan(preview: Callable[..., dict[str, Any]], config_file: Path) -> None:
    plan = make_plan(load_config(PretrainConfig, config_file, []))
    summary, counts = plan.summary(), preview()
    assert counts["tokens"]["visible"] == summary["visible_tokens"]
    assert counts["tokens"]["predicted"] == summary["predicted_tokens"]
    assert counts["parameters"]["encoder"] == summary["encoder_parameters"]
    assert counts["parameters"]["all"] == summary["parameters"]


def test_tokens_in_the_gap_of_a_future_mask_are_not_counted_as_pruned(
    preview: Callable[..., dict[str, Any]], drawn: Callable[..., tuple[Plan, ClipBatch, dict[str, Tensor]]]
) -> None:
    future = "masking={name: future, args: {context: 1, gap: 1, ratio: 0.5}}"
    tokens = preview(future, "model.predict_ratio=1")["tokens"]
    assert (tokens["visible"], tokens["predicted"], tokens["pruned_hidden"]) == (8, 32, 0)
    _, batch, columns = drawn(future, "model.predict_ratio=1")
    assert columns.keys() == {"clip", "encoder input", "to predict"}
    is_gap_BN = ~token_mask(batch.tokens["visible"], 64) & ~token_mask(batch.tokens["target"], 64)
    assert is_gap_BN.sum(dim=1).tolist() == [24] * 3
    expected_BNP = tint(columns["clip"], is_gap_BN, NOT_PREDICTED)
    assert torch.equal(columns["to predict"][is_gap_BN], expected_BNP[is_gap_BN])


@pytest.mark.slow
def test_a_run_can_be_started_in_the_folder_that_a_preview_was_drawn_into(
    preview: Callable[..., dict[str, Any]], config_file: Path, tmp_path: Path
) -> None:
    preview()
    run_forked("-m", "pretrain", str(config_file), "steps=1", "monitor.every_steps=0")
    assert (tmp_path / "run" / "encoder" / "encoder.json").exists()
    preview("seed=7", "--out", str(tmp_path / "elsewhere"))  # another config than the run's
    assert (tmp_path / "elsewhere" / "preview.png").exists()


def test_a_recipe_for_many_videos_can_be_previewed_on_a_few(preview: Callable[..., dict[str, Any]]) -> None:
    assert preview("batch.global_clips=4096")["tokens"]["grid"] == 64


def test_the_table_lists_all_nonzero_counts(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(PROGRAM, ["preview", str(config_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["tokens", "of", "a", "clip", "64", "4", "slices", "of", "4", "x", "4"]
    assert lines[1].split() == ["visible", "32", "50.0%"]
    assert not any("pruned" in line or "target" in line for line in lines)
    assert any(line.startswith("  training") and "forward and backward" in line for line in lines)


@pytest.mark.slow
def test_the_module_itself_previews_without_loading_deepspeed(config_file: Path, tmp_path: Path) -> None:
    ran = run_module("pretrain", "preview", str(config_file), "pictures.clips=1")
    assert "encoder" in ran.stdout and "deepspeed" not in ran.stderr.lower()
    assert (tmp_path / "run" / "preview" / "preview.gif").exists()


def test_visible_tokens_are_shown_and_hidden_ones_are_grey(
    drawn: Callable[..., tuple[Plan, ClipBatch, dict[str, Tensor]]],
) -> None:
    plan, batch, columns = drawn()
    assert list(columns) == ["clip", "encoder input", "to predict"]
    assert len(columns["clip"]) == 3
    is_visible_BN = token_mask(batch.tokens["visible"], 64)
    clean_BNP = patchify(batch.clip_BCTHW, PATCH)
    assert torch.equal(columns["encoder input"][is_visible_BN], clean_BNP[is_visible_BN])
    assert (columns["encoder input"][~is_visible_BN] == HIDDEN[0]).all()
    training = training_clips(plan, plan.split).batch(range(3))
    assert torch.equal(batch.tokens["visible"], training.tokens["visible"])
    assert torch.equal(batch.clip_BCTHW, training.clip_BCTHW)


def test_target_tokens_are_unchanged_and_other_hidden_tokens_are_tinted(
    drawn: Callable[..., tuple[Plan, ClipBatch, dict[str, Tensor]]],
) -> None:
    _, batch, columns = drawn()
    clean_BNP = patchify(batch.clip_BCTHW, PATCH)
    is_visible_BN, is_wanted_BN = (token_mask(batch.tokens[name], 64) for name in ("visible", "target"))
    is_not_asked_BN = ~is_visible_BN & ~is_wanted_BN
    assert is_not_asked_BN.sum(dim=1).tolist() == [16] * 3
    found_BNP = columns["to predict"]
    assert torch.equal(found_BNP[is_wanted_BN], clean_BNP[is_wanted_BN])
    assert torch.equal(
        found_BNP[is_not_asked_BN], tint(clean_BNP, is_not_asked_BN, NOT_PREDICTED)[is_not_asked_BN]
    )
    assert (found_BNP[is_visible_BN] == HIDDEN[0]).all()


def test_the_tint_of_a_pruned_token_shows_whether_the_mask_hides_it(
    drawn: Callable[..., tuple[Plan, ClipBatch, dict[str, Tensor]]],
) -> None:
    plan, batch, columns = drawn(PRUNED_HALF)
    clean_BNP = patchify(batch.clip_BCTHW, PATCH)
    is_red_BN, is_blue_BN = (
        (columns["pruned"] == tint(clean_BNP, torch.ones(3, 64, dtype=torch.bool), colour)).all(dim=2)
        for colour in (PRUNED, PRUNED_HIDDEN)
    )
    *_, unpruned = drawn()
    is_shown_BN = (unpruned["encoder input"] != HIDDEN[0]).any(dim=2)  # by the mask alone
    is_visible_BN = token_mask(batch.tokens["visible"], 64)
    assert torch.equal(is_red_BN, is_shown_BN & ~is_visible_BN)
    assert is_blue_BN.sum(dim=1).tolist() == [16] * 3 and not (is_blue_BN & is_shown_BN).any()
    assert not (is_blue_BN & token_mask(batch.tokens["target"], 64)).any()
    # The scores of pruned tokens are not above those of kept ones.
    for luma_THW, red_N, visible_K in zip(
        to_luma(batch.pixels), is_red_BN, batch.tokens["visible"], strict=True
    ):
        score_N = plan.split.pruning.score_tokens(luma_THW[None], PATCH).score_BN[0]
        assert score_N[red_N].max() <= score_N[visible_K].min()


def test_noise_has_its_own_column_and_the_encoder_input_equals_that_of_training(
    drawn: Callable[..., tuple[Plan, ClipBatch, dict[str, Tensor]]],
) -> None:
    _, batch, columns = drawn("noise={name: gaussian, args: {std: 0.5, min_std: 0.5}}")
    assert list(columns) == ["clip", "with noise", "encoder input", "to predict"]
    clean_BNP = patchify(batch.clip_BCTHW, PATCH)
    assert (columns["with noise"] != clean_BNP).float().mean() > 0.8
    is_visible_BN = token_mask(batch.tokens["visible"], 64)
    shown_XP, given_XP = (columns[title][is_visible_BN] for title in ("with noise", "encoder input"))
    assert torch.equal(shown_XP, given_XP)
    assert torch.equal(columns["clip"], clean_BNP)


def test_noise_on_tokens_shows_nothing(
    drawn: Callable[..., tuple[Plan, ClipBatch, dict[str, Tensor]]],
) -> None:
    assert "with noise" not in drawn("noise.name=token")[2]


def test_clips_and_masks_are_of_the_requested_step(
    preview: Callable[..., dict[str, Any]],
    drawn: Callable[..., tuple[Plan, ClipBatch, dict[str, Tensor]]],
) -> None:
    plan, batch, _ = drawn(step=2)
    assert batch.clip_index_B.tolist() == [8, 9, 10]
    wanted = training_clips(plan, plan.split).batch(range(8, 11))
    assert batch.keys == wanted.keys and torch.equal(batch.tokens["target"], wanted.tokens["target"])
    assert preview("--step", "3")["step"] == 3


def test_no_more_clips_are_drawn_than_a_step_has(
    drawn: Callable[..., tuple[Plan, ClipBatch, dict[str, Tensor]]],
) -> None:
    """Token budgets may differ between steps, and rows of different lengths cannot form a batch."""
    assert len(drawn("pictures.clips=9")[1].keys) == 4


@pytest.mark.parametrize("step", ["4", "-1", "two", "1.5"])
def test_a_step_that_the_run_does_not_have_is_refused(
    config_file: Path, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(PROGRAM, ["preview", str(config_file), f"--step={step}"]) == CONFIG
    assert f"--step must be a step of the run, 0 to 3, got '{step}'" in capsys.readouterr().err


def test_a_wrong_config_is_refused_as_in_training_and_nothing_is_written(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(PROGRAM, ["preview", str(config_file), "masking.name=tubes"]) == CONFIG
    assert "did you mean 'tube'?" in capsys.readouterr().err
    assert run_program(PROGRAM, ["preview", str(config_file), "data.shards=/no/where"]) == DATA
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_exits_with_3(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run_program(PROGRAM, ["preview", str(config_file), "--out", f"{tmp_path}/file/x"]) == DATA
    assert f"cannot write to {tmp_path}/file/x" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_config_draws_the_same_picture(
    preview: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    overrides = [PRUNED_HALF, "noise.name=gaussian"]
    for name in ("one", "two"):
        preview("--out", str(tmp_path / name), *overrides)
    one, two = (np.asarray(Image.open(tmp_path / name / "preview.png")) for name in ("one", "two"))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("views", "global_clips", "clips", "shown"),
    [
        (1, 32, 4, [0, 1, 2, 3]),
        (4, 32, 4, [0, 4, 8, 12]),
        (4, 8, 4, [0, 2, 4, 6]),  # a step has two videos
        (4, 2, 4, [0, 1]),
        (2, 32, 3, [0, 2, 4]),
    ],
)
def test_pictures_show_different_videos(
    repo: Path, views: int, global_clips: int, clips: int, shown: list[int]
) -> None:
    config = load_config(
        PretrainConfig,
        repo / "configs/pretrain/demo.yaml",
        [f"data.views_per_video={views}", f"batch.global_clips={global_clips}", f"pictures.clips={clips}"],
    )
    assert list(clips_of_pictures(config)) == shown
    assert list(clips_of_pictures(config, 64)) == [64 + clip for clip in shown]


def test_the_rows_of_a_preview_are_different_videos_with_several_views_per_video(
    config_file: Path,
) -> None:
    config = load_config(
        PretrainConfig, config_file, ["data.views_per_video=4", "batch.global_clips=8", "pictures.clips=2"]
    )
    batch = read_clips(make_plan(config, is_run=False), 0)
    assert len(set(batch.keys)) == 2
