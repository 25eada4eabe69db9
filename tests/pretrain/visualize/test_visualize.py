"""`kinemae pretrain visualize`: its files, its values against plain references, and its errors."""

import json
import shutil

import av
import numpy as np
import pytest
import torch

from kinemae.data_tools.command import run_program
from kinemae.data_tools.components import Component
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.evaluation_clips import EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import ClipConfig, SlidingClips
from kinemae.data_tools.stream.video_files import open_video_files
from kinemae.data_tools.stream.yuv_to_rgb import to_rgb
from kinemae.pretrain.__main__ import PROGRAM
from kinemae.pretrain.exported_model import (
    EncoderDescription,
    describe_decoder,
    save_decoder,
    save_encoder,
)
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid, unpatchify
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.pruning.learned import LearnedPruning
from kinemae.pretrain.targets.hog import HogTarget
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.visualize.features import PrincipalComponents, Similarity
from kinemae.pretrain.visualize.open_model import open_pretrained_model, subject_of
from kinemae.pretrain.visualize.views import Window
from tests.filming import SHIPPED

FILM = SHIPPED / "h264_b_frames.mp4"  # 30 frames of 96x64 at 25 fps
GRID = TokenGrid(2, 4, 4)
TARGETS = {"pixels": PixelTarget, "hog": HogTarget}


def save(folder, *, target="pixels", attention="joint", pruning=None, frames=4, sampling="dense"):
    torch.manual_seed(0)
    shape = {"width": 24, "depth": 2, "heads": 2, "decoder_width": 24, "decoder_depth": 1, "patch_size": 8}
    config = ModelConfig(size="tiny", attention=Component(name=attention), **shape)
    model = build_autoencoder(config, GRID, target=TARGETS[target](), noise=NoNoise(), pruning=pruning)
    description = EncoderDescription(
        shape=model.encoder.shape, grid=GRID, reference=GRID, frames=frames, stride=1, size=32,
        sampling=sampling,
    )  # fmt: skip
    save_decoder(folder, model.decoder, describe_decoder(model.decoder, target=Component(name=target)))
    save_encoder(folder, model.encoder, description)
    return folder


@pytest.fixture
def visualize(tmp_path, capsys):
    """Run the command; return its JSON, or its exit code and messages."""

    def run(model, *arguments, source=FILM, out="out", code=0):
        capsys.readouterr()
        words = ["visualize", str(model), str(source), str(tmp_path / out), "--json", *arguments]
        assert run_program(PROGRAM, words) == code
        printed = capsys.readouterr()
        return json.loads(printed.out) if code == 0 else printed.err

    return run


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.slow
def test_it_draws_every_view_of_the_whole_video_and_repeats_itself(visualize, tmp_path):
    model = save(tmp_path / "encoder", pruning=LearnedPruning())
    found = visualize(model, "windows=2")
    folder = tmp_path / "out" / FILM.name
    views = ("attention", "pruning", "merging", "reconstruction", "similarity", "pca")
    files = [f"{view}.{kind}" for view in views for kind in ("mp4", "gif", "png")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert list(found["not_drawn"]) == ["pooling"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<video") == len(views) and 'src="http' not in page
    for view in views:
        shown = frames_of(folder / f"{view}.mp4")
        assert len(shown) == 30  # eight windows of 4 frames; two frames are in two windows
    first = {name: (folder / name).read_bytes() for name in files}
    visualize(model, "windows=2")
    assert {name: (folder / name).read_bytes() for name in files} == first
    assert (tmp_path / "out" / "index.html").read_text() == page


def test_the_clip_in_the_video_is_the_one_that_the_model_gets(visualize, tmp_path):
    visualize(save(tmp_path / "encoder"), "views=[pca]", "blocks=[1]")
    grids = frames_of(tmp_path / "out" / FILM.name / "pca.mp4")
    index = open_video_files(FILM, tmp_path / "files").index
    videos = EvaluationVideos(
        index, [0], clip=ClipConfig(frames=4, stride=1, size=32), temporal_clips=SlidingClips(),
        spatial_crops=1,
    )  # fmt: skip
    pixels = to_rgb(videos.read(0, quarantined={}, on_sample=lambda key: None).pixels)
    first_THWC = pixels[0].permute(1, 2, 3, 0).numpy()
    head = len(grids[0]) - 132 - 22  # above the cell and the time line
    for frame_HWC, shown_HWC in zip(first_THWC, grids, strict=False):
        small_HWC = shown_HWC[head : head + 128 : 4, 0:128:4].astype(float)
        errors = [np.abs(small_HWC - other_HWC).mean() for other_HWC in first_THWC]
        assert np.abs(small_HWC - frame_HWC).mean() == min(errors) < 12


@pytest.mark.parametrize("attention", ["divided", "windowed", "sparse"])
def test_other_attention_kinds_are_drawn_and_the_reason_against_merging_is_stated(
    visualize, tmp_path, attention
):
    model = save(tmp_path / "encoder", attention=attention)
    found = visualize(model, "stride=4", "windows=1", "views=[attention]", "heads=[1]", "point=[0.1, 0.9]")
    assert len(found["files"]) == 3 and "joint" in found["not_drawn"]["merging"]
    message = visualize(model, "views=[merging]", code=2)
    assert "views: expected views that the model has, got merging" in message


def test_a_target_without_pixels_has_no_reconstruction(visualize, tmp_path):
    model = save(tmp_path / "encoder", target="hog")
    found = visualize(model, "views=[pca]", "stride=4", "windows=1")
    assert found["not_drawn"]["reconstruction"] == "the target hog predicts no pixels"
    (model / "decoder.json").unlink()
    found = visualize(model, "views=[pca]", "stride=4", "windows=1")
    assert "has no decoder" in found["not_drawn"]["reconstruction"]


def test_all_windows_have_one_masking_of_a_mixture(visualize, tmp_path):
    parts = "{future: {args: {context: 1, gap: 0, ratio: 0.5}}, uniform: {args: {ratio: 0.5}}}"
    masking = f"masking={{name: mixture, args: {{parts: {parts}}}}}"
    found = visualize(save(tmp_path / "encoder"), masking, "views=[reconstruction]", "windows=8")
    assert len(found["files"]) == 3


def windows_of(model, clips):
    opened = open_pretrained_model(model)
    subject = subject_of(opened.encoder, opened.description, torch.device("cpu"))
    times = torch.arange(4 * len(clips), dtype=torch.float64).view(-1, 4)
    return [Window(subject, clip_CTHW[None], times[i], i, len(clips)) for i, clip_CTHW in enumerate(clips)]


def test_similarity_is_the_cosine_to_the_chosen_token_without_the_mean(tmp_path):
    clips = torch.randint(256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    windows = windows_of(save(tmp_path / "encoder"), clips)
    view = Similarity([1], (0.3, 0.99), point_s=6.0)  # window 1, slice 1, row 3, column 1
    with torch.no_grad():
        for window in windows:
            view.measure(window)
        tokens_BND = torch.stack([window.passes[0].block_ND[1] for window in windows])
        tokens_BND = windows[0].subject.encoder.norm(tokens_BND)
        tokens_BND = tokens_BND - tokens_BND.mean(dim=(0, 1))
        expected_BN = torch.cosine_similarity(tokens_BND, tokens_BND[1, 16 + 3 * 4 + 1], dim=2)
        for window, expected_N in zip(windows, expected_BN, strict=True):
            assert torch.allclose(view.maps(window)["block 1"], expected_N, atol=1e-5)
        framed, other = (view.columns(window)[0].clip_BCTHW[0] for window in reversed(windows))
    assert torch.equal(other, clips[0])
    is_white_THW = (framed != clips[1]).any(dim=0)
    assert is_white_THW.any() and not is_white_THW[:2].any() and not is_white_THW[:, :24].any()


def test_principal_components_are_those_of_the_singular_values(tmp_path):
    clips = torch.randint(256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    windows = windows_of(save(tmp_path / "encoder"), clips)
    view = PrincipalComponents([0])
    with torch.no_grad():
        for window in windows:
            view.measure(window)
        tokens_XD = windows[0].subject.encoder.norm(
            torch.cat([window.passes[0].block_ND[0] for window in windows])
        )
        u_XK, values_K, _ = torch.linalg.svd(tokens_XD - tokens_XD.mean(dim=0), full_matrices=False)
        _, column = view.columns(windows[0])
    fraction = float(values_K[:3].square().sum() / values_K.square().sum())
    assert column.legend == ((f"{fraction:.0%} of the variance", None),)
    colour_NC = column.clip_BCTHW[0, :, ::2, ::8, ::8].flatten(1).T.double()
    for channel in range(3):
        pair_2N = torch.stack([colour_NC[:, channel], u_XK[: GRID.tokens, channel].double()])
        assert abs(float(torch.corrcoef(pair_2N)[0, 1])) > 0.99  # equal but for clamped ends
    assert torch.equal(column.clip_BCTHW, unpatchify(
        column.clip_BCTHW[0, :, ::2, ::8, ::8].flatten(1).T.repeat(1, 128)[None], GRID, (2, 8, 8)
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["views=[atention]"], "views must name some of attention, pooling"),
        (["views=[pooling]"], "got pooling: only a fine-tuned model"),
        (["blocks=[2]"], "blocks must lie in 0 to 1"),
        (["heads=[2]"], "heads must lie in 0 to 1 for the encoder"),
        (["point=[3, 0.5]"], "point must hold x and y as fractions"),
        (["pruning=[learned]"], "pruning.learned: expected an encoder with a scorer"),
        (["pruning={motion: {keep: 2}}"], "pruning.args.keep must be a fraction"),
        (["merge_per_block=-1"], "merge_per_block must be 0 or more"),
        (["masking={name: tube, args: {ratio: 0}}"], "masking.args.ratio must lie strictly between 0 and 1"),
        (["stride=2", "fps=4"], "fps must be omitted with stride"),
    ],
)
def test_a_wrong_setting_is_one_line(visualize, tmp_path, arguments, message):
    found = visualize(save(tmp_path / "encoder"), *arguments, code=2)
    assert message in found and found.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_damaged_sample_of_shards_is_named_and_the_others_are_drawn(visualize, tmp_path, synth_shards):
    model, shards = save(tmp_path / "encoder"), tmp_path / "shards"
    shutil.copytree(synth_shards / "validation", shards)
    index = open_index(shards)
    first, second = index.sample(0), index.sample(1)
    with (shards / index.shards[first.shard].name).open("r+b") as tar:
        tar.seek(first.offset + first.length // 2)
        tar.write(b"damage")
    settings = ("views=[pca]", "blocks=[0]", "stride=4", "windows=1")
    found = visualize(model, *settings, f"keys=[{first.key}, {second.key}]", source=shards)
    assert list(found["unreadable"]) == [first.name] and len(found["files"]) == 3
    assert "Unreadable videos" in (tmp_path / "out" / "index.html").read_text()
    message = visualize(model, *settings, f"keys=[{first.key}]", source=shards, code=3)
    assert f"{first.name}: expected a readable video, got an error" in message


def test_names_that_become_equal_have_their_own_folders_and_unreadable_files_are_on_the_page(
    visualize, tmp_path
):
    source, out = tmp_path / "videos", tmp_path / "videos/out"
    source.mkdir()
    for name in ("a b.mp4", "a_b.mp4", "<b>.mp4"):
        shutil.copy(FILM, source / name)
    (source / "damaged.mp4").write_bytes(FILM.read_bytes()[:300])
    settings = ("views=[pca]", "blocks=[0]", "stride=4", "windows=1", "samples=9")
    for _ in range(2):  # pictures in the source are no videos of it
        found = visualize(save(tmp_path / "encoder"), *settings, source=source, out="videos/out")
        assert len(set(found["files"])) == 9 and list(found["unreadable"]) == ["damaged.mp4"]
    page = (out / "index.html").read_text()
    assert "damaged.mp4" in page and "&lt;b&gt;.mp4" in page and "<b>.mp4" not in page


def test_a_wrong_source_or_model_is_one_line(visualize, tmp_path):
    model = save(tmp_path / "encoder")
    assert "no such file" in visualize(model, source=tmp_path / "absent.mp4", code=3)
    message = visualize(model, "keys=[other]", code=3)
    assert f"keys: expected keys of {FILM}, such as {FILM.name}, got other" in message
    (tmp_path / "damaged.mp4").write_bytes(FILM.read_bytes()[:300])
    assert "damaged.mp4" in visualize(model, source=tmp_path / "damaged.mp4", code=3)
    shutil.copy(model / "encoder.json", model / "head.json")
    message = visualize(model, code=4)
    assert f"got a fine-tuned model; fix: kinemae finetune visualize {model} SOURCE OUT" in message
    assert "got no such folder" in visualize(tmp_path / "absent", code=4)
