"""Reconstruction pictures: each column has the documented content, token by token."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.callbacks import Schedule, eval_mode
from kinemae.pretrain.clip_grid import HIDDEN, PRUNED, Column, draw_frames, draw_grid, tint, token_mask
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid, patchify, unpatchify
from kinemae.pretrain.noise.base import Noise
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.reconstructions import draw_clips, reconstruction_columns
from kinemae.pretrain.targets.base import Target

GRID, PATCH = TokenGrid(2, 4, 4), (2, 8, 8)


def model_with(
    *, target: str = "pixels", noise: str = "none", pruning: str = "none", **changes: object
) -> MaskedAutoencoder:
    torch.manual_seed(0)
    config = {"width": 24, "depth": 1, "heads": 2, "decoder_width": 24, "decoder_depth": 1, "patch_size": 8}
    return build_autoencoder(
        ModelConfig(size="tiny", **{**config, **changes}),  # type: ignore[arg-type]
        GRID,
        target=build_component("kinemae.pretrain.targets", Component(name=target), Target),
        noise=build_component("kinemae.pretrain.noise", Component(name=noise), Noise),
        pruning=build_component("kinemae.pretrain.pruning", Component(name=pruning), Pruning),
    )


def batch_of(visible: Sequence[int], wanted: Sequence[int], *, clips: int = 2) -> ClipBatch:
    generator = torch.Generator().manual_seed(1)
    return ClipBatch(
        pixels=torch.randint(0, 256, (clips, 3, 4, 32, 32), dtype=torch.uint8, generator=generator),
        clip_index_B=torch.arange(clips),
        label_B=torch.zeros(clips, dtype=torch.int64),
        weight_B=torch.ones(clips),
        tokens={
            "visible": torch.tensor(visible).expand(clips, -1),
            "target": torch.tensor(wanted).expand(clips, -1),
        },
    )


def columns(model: MaskedAutoencoder, batch: ClipBatch) -> dict[str, Tensor]:
    """The columns by title, each as patches_BNP."""
    with eval_mode(model):
        found = reconstruction_columns(model, batch, seed=0)
    return {column.title: patchify(column.clip_BCTHW, PATCH) for column in found}


def test_hidden_patches_are_grey_and_visible_ones_unchanged() -> None:
    batch = batch_of(range(10), range(10, 32))
    shown = columns(model_with(), batch)
    clean_BNP = patchify(batch.clip_BCTHW, PATCH)
    assert list(shown) == ["clip", "encoder input", "prediction", "with TRUE statistics"]
    assert torch.equal(shown["clip"], clean_BNP)
    assert torch.equal(shown["encoder input"][:, :10], clean_BNP[:, :10])
    assert (shown["encoder input"][:, 10:] == HIDDEN[0]).all()
    for title in ("prediction", "with TRUE statistics"):
        assert torch.equal(shown[title][:, :10], clean_BNP[:, :10])
        assert not torch.equal(shown[title][:, 10:], clean_BNP[:, 10:])


def test_a_model_that_standardizes_clips_predicts_from_clips_that_are_standardized_once() -> None:
    """A second time would change the contrast of a dark clip, whose bright pixels were clamped."""
    batch = batch_of(range(10), range(10, 32))
    dark_BCTHW = torch.where(batch.clip_BCTHW > 250, 255, batch.clip_BCTHW // 20)
    model, batch = model_with(standardize=True), replace(batch, pixels=dark_BCTHW)
    with eval_mode(model):
        prediction, inputs = model.predict(batch, ClipRandom(0, batch.clip_index_B))
    shown = columns(model, batch)
    assert torch.equal(shown["clip"], patchify(inputs.clip_BCTHW, PATCH))
    assert prediction.decoded_BMP is not None
    pixels_BMP = model.target.to_pixels(prediction.decoded_BMP, inputs, visible_only=True)
    assert torch.equal(shown["prediction"][:, 10:], pixels_BMP)


def test_tokens_that_are_neither_visible_nor_predicted_are_tinted() -> None:
    batch = batch_of(range(10), range(10, 25))
    shown = columns(model_with(), batch)
    clean_BNP = patchify(batch.clip_BCTHW, PATCH)
    everything_BN = torch.ones(2, 32, dtype=torch.bool)
    tinted_BNP = tint(clean_BNP, everything_BN, PRUNED)
    assert "pruned" in shown
    assert torch.equal(shown["pruned"][:, :25], clean_BNP[:, :25])
    for title in ("pruned", "prediction", "with TRUE statistics"):
        assert torch.equal(shown[title][:, 25:], tinted_BNP[:, 25:])


def test_a_tint_pulls_every_pixel_towards_its_colour() -> None:
    patches_BNP = torch.tensor([[[0, 100, 200], [0, 100, 200]]], dtype=torch.uint8)
    tinted_BNP = tint(patches_BNP, torch.tensor([[True, False]]), (250, 100, 0))
    assert tinted_BNP.tolist() == [[[150, 100, 80], [0, 100, 200]]]


def test_the_tint_shows_the_selection_of_a_learned_pruner() -> None:
    model = model_with(pruning="learned")
    batch = batch_of(range(10), range(10, 32))
    with eval_mode(model):
        _, inputs = model.predict(batch, ClipRandom(0, batch.clip_index_B))
    is_kept_BN = token_mask(inputs.visible_BK, 32)
    assert is_kept_BN.sum(dim=1).tolist() == [5, 5]
    clean_BNP = patchify(batch.clip_BCTHW, PATCH)
    found = columns(model, batch)
    is_tinted_BN = (found["pruned"] != clean_BNP).any(dim=2)
    assert torch.equal(is_tinted_BN[:, :10], ~is_kept_BN[:, :10]) and not is_tinted_BN[:, 10:].any()
    assert torch.equal(found["encoder input"][:, :10], clean_BNP[:, :10])  # its input has all ten


@pytest.mark.parametrize("target", ["features", "hog", "motion", "noise"])
def test_targets_without_pictures_show_the_first_columns(target: str) -> None:
    model = model_with(target=target, noise="gaussian")
    found = columns(model, batch_of(range(10), range(10, 32)))
    assert list(found)[:2] == ["clip", "encoder input"]
    assert all(len(patches_BNP) == 2 for patches_BNP in found.values())


def test_noise_is_in_the_encoder_s_input_only() -> None:
    batch = batch_of(range(10), range(10, 32))
    found = columns(model_with(noise="gaussian"), batch)
    clean_BNP = patchify(batch.clip_BCTHW, PATCH)
    assert torch.equal(found["clip"], clean_BNP)
    assert not torch.equal(found["encoder input"][:, :10], clean_BNP[:, :10])
    assert (found["encoder input"][:, 10:] == HIDDEN[0]).all()


def test_drawing_leaves_every_part_of_the_model_in_its_mode() -> None:
    model = model_with(target="features")
    model.train()
    next(part for part in model.target.modules() if isinstance(part, nn.LayerNorm)).eval()
    modes = [part.training for part in model.modules()]
    draw_clips(model, batch_of(range(10), range(10, 32)), seed=0)
    assert [part.training for part in model.modules()] == modes
    assert True in modes and False in modes
    assert torch.is_grad_enabled()


def coloured(*colours: int) -> Column:
    """One clip per colour: 3 frames, each one grey level brighter than the previous one."""
    frame_T = torch.arange(3, dtype=torch.uint8)[None, None, :, None, None]
    levels_B = torch.tensor(colours, dtype=torch.uint8)[:, None, None, None, None]
    return Column(title="x", clip_BCTHW=(levels_B + frame_T).expand(-1, 3, -1, 64, 64))


def test_a_grid_has_a_row_for_each_clip_and_a_column_for_each_view() -> None:
    sheet_THWC = draw_grid([coloured(10, 60), coloured(110, 160)])
    assert sheet_THWC.dtype == np.uint8 and sheet_THWC.shape[0] == 3
    height, width = sheet_THWC.shape[1:3]
    head = height - 2 * 132
    assert width == 2 * 132 and 10 < head < 40  # small clips are drawn twice as large, 4 px apart
    for t in range(3):
        corners = sheet_THWC[t, head::132, ::132, 0]
        assert corners.tolist() == [[10 + t, 110 + t], [60 + t, 160 + t]]
    assert (sheet_THWC[:, :head] < 128).any()  # a title is written


def test_moments_are_stacked_clip_by_clip() -> None:
    picture_HWC = draw_frames([coloured(10, 60), coloured(110, 160)], [0, 2])
    head = len(picture_HWC) - 4 * 132
    assert picture_HWC[head::132, ::132, 0].tolist() == [[10, 110], [12, 112], [60, 160], [62, 162]]


def test_joined_patches_equal_the_clip() -> None:
    clip_BCTHW = batch_of([0], [1]).clip_BCTHW
    assert torch.equal(unpatchify(patchify(clip_BCTHW, PATCH), GRID, PATCH), clip_BCTHW)


@pytest.mark.parametrize(
    ("reports", "due"),
    [
        (range(12), [3, 7, 11]),  # each step is a report
        ([2, 5, 8, 11], [5, 8, 11]),  # every third: at the first after each multiple
        ([9, 11], [9, 11]),  # the first report includes the start
    ],
)
def test_a_schedule_is_due_at_the_first_report_after_each_multiple_and_at_the_end(
    reports: Sequence[int], due: list[int]
) -> None:
    schedule = Schedule(every_steps=4, last_step=11)
    firsts = [0, *(step + 1 for step in reports)]
    assert [last for first, last in zip(firsts, reports, strict=False) if schedule.is_due(first, last)] == due
