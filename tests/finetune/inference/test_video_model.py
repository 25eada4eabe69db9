"""Models for inference: values of training and evaluation, and one-line errors for other clips."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import kinemae
from kinemae.data_tools.components import Component
from kinemae.finetune.export.static_model import example_clips
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.model.tokens import normalize, patchify, standardize
from tests.finetune.export.test_export_command import SHAPE, describe, save_pretrained
from tests.finetune.test_model_file import saved

VIDEO = Path(__file__).resolve().parents[2] / "data" / "videos" / "h264_b_frames.mp4"
CLIPS = torch.randint(
    0, 256, (3, 3, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "model")
    return tmp_path / "model"


def test_a_loaded_model_gives_the_values_of_its_modules(folder):
    model, trained = kinemae.load(folder), saved(folder)
    encoder = trained.encoder
    model = kinemae.load(str(folder))
    with torch.no_grad():
        tokens_BND = encoder(normalize(patchify(CLIPS, encoder.shape.patch), (0.4,) * 3, (0.3,) * 3), None)
        scores_BY = torch.softmax(trained.output(CLIPS)[0].double(), dim=1)
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    assert model(CLIPS).equal(tokens_BND) and model.features(CLIPS).equal(tokens_BND)
    assert torch.allclose(model.embed(CLIPS), tokens_BND.mean(dim=1))
    assert model.scores(CLIPS).equal(scores_BY)
    assert model.classes == ("walk", "run", "sch\u00f6n")
    first_BND, last_BND, same_BND = model.intermediate(CLIPS, [0, -1, 1.0])
    assert last_BND.equal(tokens_BND) and same_BND.equal(last_BND) and not first_BND.equal(last_BND)


def test_float_clips_give_the_features_of_their_bytes(folder):
    model = kinemae.load(folder)
    assert model.features(CLIPS.float() / 255).equal(model.features(CLIPS))
    assert model.features(CLIPS.double() / 255).equal(model.features(CLIPS))


def test_a_model_that_standardizes_clips_ignores_their_contrast(tmp_path):
    shape = replace(SHAPE, standardize=True)
    encoder = save_pretrained(tmp_path / "encoder", describe(shape))
    model, plain = kinemae.load(encoder), kinemae.load(save_pretrained(tmp_path / "plain", describe(SHAPE)))
    clips = example_clips(model.clip, 2)
    dark = (clips.float() * 0.6 + 10).round().to(torch.uint8)

    def change(model):
        return (model.features(clips) - model.features(dark)).norm() / model.features(clips).norm()

    assert change(model) < 0.05 < 5 * change(model) < change(plain)
    standardized = standardize(clips, model.description.mean, model.description.std)
    assert model.features(clips).equal(plain.features(standardized))


def test_weights_of_another_type_give_nearly_the_same_scores(folder):
    full, half = kinemae.load(folder), kinemae.load(folder, dtype=torch.bfloat16)
    assert half.features(CLIPS).dtype == torch.bfloat16
    assert torch.allclose(half.scores(CLIPS), full.scores(CLIPS), atol=0.05)


def test_other_clips_resample_the_positions(folder):
    model = kinemae.load(folder, frames=8, size=32)
    assert (model.clip.frames, model.clip.size, model.transform.frames) == (8, 32, 8)
    assert model.encoder.reference.t == 2 and model.encoder.grid.t == 4
    assert model.scores(torch.zeros(1, 3, 8, 32, 32, dtype=torch.uint8)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"clip.frames must be a multiple"):
        kinemae.load(folder, frames=3)


def test_pruning_that_keeps_different_numbers_of_tokens_needs_single_clips(tmp_path):
    reduction = TokenReduction(pruning=Component(name="run_length", args={"threshold": 0.3}))
    saved(tmp_path, token_reduction=reduction)
    model = kinemae.load(tmp_path)
    clips = CLIPS.clone()
    clips[0] = clips[0, :, :1]  # a still clip keeps the tokens of one slice
    each = [model.features(clip_CTHW[None]) for clip_CTHW in clips]
    assert len({tokens_BND.shape[1] for tokens_BND in each}) > 1
    means = [tokens_BND.mean(dim=1) for tokens_BND in each]
    assert torch.allclose(model.embed(clips), torch.cat(means), atol=1e-5)
    with pytest.raises(ValueError, match="features: expected clips that keep equally many tokens, got"):
        model.features(clips)
    with pytest.raises(ValueError, match="intermediate: expected a model that keeps all tokens"):
        model.intermediate(clips, [0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda clips: clips.float(),
            "from 0 to 1, got values from 0 to 255; fix: clips / 255",
        ),
        (lambda clips: clips / 255 - 0.5, "from -0.5 to 0.5; fix: pass pixels that are not normalized"),
        (
            lambda clips: clips / clips.new_zeros(1, dtype=torch.float32),
            "expected float from 0 to 1, got values",
        ),
        (lambda clips: clips.transpose(1, 2), r"got \(3, 4, 3, 16, 16\); fix: clips.transpose\(1, 2\)"),
        (lambda clips: clips.permute(0, 2, 3, 4, 1), r"fix: clips.permute\(0, 4, 1, 2, 3\)"),
        (lambda clips: clips[0], r"got \(3, 4, 16, 16\); fix: add the batch dim, clips\[None\]"),
        (lambda clips: clips[:, :1], "fix: use model.transform on the frames of each clip"),
        (lambda clips: clips.long(), "expected uint8 from 0 to 255, or float from 0 to 1, got torch.int64"),
        (lambda clips: clips.numpy(), "expected a torch.Tensor, got ndarray"),
        (
            lambda clips: clips[:, :, :2],
            "expected 4 frames of 16x16 pixels, got 2 of 16x16; fix: use model.transform, or load",
        ),
        # As many tokens in another grid.
        (lambda clips: clips.reshape(3, 3, 4, 8, 32), "expected 4 frames of 16x16 pixels, got 4 of 8x32"),
    ],
)
def test_other_clips_are_errors(folder, change, message):
    model = kinemae.load(folder)
    for method in (model, model.embed, model.scores, lambda clips: model.intermediate(clips, [0])):
        with pytest.raises(ValueError, match=f"clips: .*{message}"):
            method(change(CLIPS))


def test_other_blocks_and_a_missing_head_are_errors(tmp_path, folder):
    for name in ("encoder.json", "encoder.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    encoder = kinemae.load(tmp_path)
    assert encoder.features(CLIPS).equal(kinemae.load(folder).features(CLIPS))
    with pytest.raises(ValueError, match="with a head, got an encoder; fix: train one"):
        encoder.scores(CLIPS)
    with pytest.raises(ValueError, match=r"layers: expected blocks from 0 to 1, .*, got 2"):
        encoder.intermediate(CLIPS, [2])


def test_the_transform_crops_the_centre_and_accepts_both_layouts(folder):
    transform = kinemae.load(folder).transform
    assert (transform.frames, transform.size, transform.stride, transform.fps) == (4, 16, 2, None)
    frames_THWC = np.random.default_rng(0).integers(0, 256, (4, 16, 30, 3), dtype=np.uint8)
    clip_CTHW = transform(frames_THWC)
    centre_THWC = frames_THWC[:, :, 6:22]  # the left edge is even, as in the videos' planes
    assert clip_CTHW.numpy().transpose(1, 2, 3, 0).tolist() == centre_THWC.tolist()
    assert transform(torch.from_numpy(frames_THWC).permute(0, 3, 1, 2)).equal(clip_CTHW)
    larger_THWC = np.repeat(np.repeat(centre_THWC, 4, axis=1), 4, axis=2)
    assert transform(larger_THWC).equal(clip_CTHW)  # the mean of equal pixels
    with pytest.raises(ValueError, match="frames: expected the 4 frames of a clip, got 3"):
        transform(frames_THWC[:3])
    with pytest.raises(ValueError, match=r"frames: expected uint8 of shape .*, got float32"):
        transform(frames_THWC.astype(np.float32))


def test_predictions_over_time_are_the_scores_of_its_windows(folder):
    model = kinemae.load(folder)
    found = model.predict(VIDEO, stride=2, overlap=0.5, cpu_threads=1)
    assert found.columns == model.classes and len(found.start_R) == len(found.score_RX) > 2
    first = kinemae.read_clip(VIDEO, model.clip, start_s=float(found.start_R[0]))
    assert np.allclose(found.score_RX[0], model.scores(first[None])[0].numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="overlap must lie in"):
        model.predict(VIDEO, overlap=2)
    with pytest.raises(ValueError, match=r"did you mean overlap\?"):
        model.predict(VIDEO, overlp=0.5)


def test_a_stream_of_frames_gives_a_prediction_for_each_window(folder):
    model = kinemae.load(folder)
    clip_CTHW = kinemae.read_clip(VIDEO, frames=16, stride=1)
    frames_THWC = clip_CTHW.permute(1, 2, 3, 0)
    found = list(model.predict_stream(frames_THWC, stream_fps=25.0))
    assert len(found) == 2 and found[0].start_s == 0  # 4 frames at every 2nd one
    scores_Y = model.scores(model.transform(frames_THWC[8:16:2])[None])[0]
    assert np.allclose([*found[1].scores.values()], scores_Y.numpy(), atol=1e-6)
    assert [*found[1].scores] == [*model.classes]
