"""Imported models compute what transformers' VideoMAE computes, and what we export computes the same there.

Weights as transformers draws them, every bias and every norm random; epsilons are the official ones.
oneDNN's 3-D convolution rounds by 6e-6 on such clips (against float64, where PyTorch's own and our linear
layer round by 2e-6), so the peer goes without it.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification

from kinemae.data_tools.config import load_config
from kinemae.finetune.classifier import Classifier
from kinemae.finetune.conversion.huggingface import huggingface_tensors, write_huggingface
from kinemae.finetune.conversion.model_bundle import Kin, save_kin
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.init_weights_from import open_start
from kinemae.pretrain.model.autoencoder import build_autoencoder
from kinemae.pretrain.model.tokens import MEAN, STD, TokenGrid, normalise, take_patches
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.targets.base import Prediction, TargetInputs
from kinemae.pretrain.targets.pixels import PixelTarget
from tests.conversion import (
    TINY,
    huggingface_classification,
    huggingface_pretraining,
    imported,
    official_names,
    without_onednn,
)

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")
SIZES = ("tiny", "small", "base")
CLASSES = 11


class Peer(NamedTuple):
    """A transformers model, a clip, and what it says of the clip."""

    model: VideoMAEForPreTraining
    clip_BCTHW: Tensor
    is_hidden_BN: Tensor
    tokens_BKD: Tensor
    logits_BMP: Tensor
    loss: Tensor


@functools.cache
def peer(size: str) -> Peer:
    model = huggingface_pretraining(size)
    clip_BCTHW, pixels = a_clip(model.config)
    count = model.videomae.embeddings.num_patches
    is_hidden_BN = torch.randperm(count, generator=torch.Generator().manual_seed(2))[None] >= count // 10
    tokens_BKD, said = told(model, pixels, is_hidden_BN)
    return Peer(model, clip_BCTHW, is_hidden_BN, tokens_BKD, said.logits, said.loss)


def a_clip(config) -> tuple[Tensor, Tensor]:
    """A clip as we take it, uint8 (B, C, T, H, W), and as transformers does, normalised (B, T, C, H, W)."""
    shape = (1, 3, config.num_frames, config.image_size, config.image_size)
    clip_BCTHW = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    pixels = (clip_BCTHW.transpose(1, 2).double() / 255 - mean) / std
    return clip_BCTHW, pixels.float()


def told(model: VideoMAEForPreTraining, pixels: Tensor, is_hidden_BN: Tensor):
    """The encoder's tokens and the whole output of the peer."""
    with torch.inference_mode(), without_onednn():
        tokens_BKD = model.videomae(pixels, bool_masked_pos=is_hidden_BN).last_hidden_state
        return tokens_BKD, model(pixels, bool_masked_pos=is_hidden_BN)


def ours(kin: Kin, peer: Peer) -> tuple[Tensor, Tensor, Tensor]:
    """tokens_BKD, prediction_BMP and loss of the peer's clip under its mask."""
    visible_BK, target_BM = (is_it.nonzero()[:, 1][None] for is_it in (~peer.is_hidden_BN, peer.is_hidden_BN))
    inputs = TargetInputs(
        clip_BCTHW=peer.clip_BCTHW,
        target_BM=target_BM,
        visible_BK=visible_BK,
        added_BKP=None,
        patch=kin.description.shape.patch,
        mean=MEAN,
        std=STD,
    )
    with torch.inference_mode():
        tokens_BKD = kin.encoder(
            normalise(take_patches(peer.clip_BCTHW, visible_BK, inputs.patch)), visible_BK
        )
        prediction_BMP = kin.decoder(tokens_BKD, visible_BK, target_BM)
        loss_B = PixelTarget().losses(Prediction(decoded_BMP=prediction_BMP), inputs)["loss"]
    return tokens_BKD, prediction_BMP, loss_B.mean()


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value where that is above 1, as rounding is.

    Without that the bound would depend on the processor, whose kernels order the sums: 2e-6 to 4e-6 seen.
    """
    return ((one - other).abs().max() / other.abs().max().clamp(min=1)).item()


def saved(folder: Path, model) -> Path:
    torch.save({"model": official_names(model)}, folder / "official.pth")
    return folder / "official.pth"


def options(size: str) -> ImportOptions:
    return TINY if size == "tiny" else ImportOptions()


@pytest.mark.parametrize("size", SIZES)
def test_an_imported_pretraining_file_computes_what_the_peer_computes(size, tmp_path):
    theirs = peer(size)

    kin = imported(saved(tmp_path, theirs.model), options(size))

    tokens_BKD, prediction_BMP, loss = ours(kin, theirs)
    assert difference(tokens_BKD, theirs.tokens_BKD) <= 3e-6
    assert difference(prediction_BMP, theirs.logits_BMP) <= 3e-6
    assert difference(loss, theirs.loss) <= 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_an_exported_pretraining_model_loads_in_the_peer_and_computes_the_same(size, tmp_path):
    theirs = peer(size)
    kin = imported(saved(tmp_path, theirs.model), options(size))

    write_huggingface(tmp_path / "out", kin, huggingface_tensors(kin, source="test"))
    loaded, report = VideoMAEForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)

    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    loaded.decoder.norm.eps = 1e-6
    _, said = told(loaded.eval(), a_clip(loaded.config)[1], theirs.is_hidden_BN)
    assert difference(said.logits, theirs.logits_BMP) <= 3e-6
    assert difference(said.loss, theirs.loss) <= 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_a_finetuned_model_computes_what_the_peer_computes_in_both_directions(size, tmp_path):
    model = huggingface_classification(size, CLASSES)
    clip_BCTHW, pixels = a_clip(model.config)
    with torch.inference_mode(), without_onednn():
        logits_BY = model(pixels).logits

    kin = imported(saved(tmp_path, model), options(size))
    with torch.inference_mode():
        ours_BY = Classifier(kin.encoder, kin.head).eval().logits(clip_BCTHW)
    write_huggingface(tmp_path / "out", kin, huggingface_tensors(kin, source="test"))
    loaded, report = VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )

    assert difference(ours_BY, logits_BY) <= 3e-6
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    # The weights to the last bit, so their logits too; a third forward pass at base would only take time.
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert loaded.config.layer_norm_eps == 1e-6 and loaded.config.num_labels == CLASSES


def test_with_the_peers_own_epsilons_the_logits_still_agree(tmp_path):
    theirs = peer("tiny")
    kin = imported(saved(tmp_path, theirs.model), TINY)
    write_huggingface(tmp_path / "out", kin, huggingface_tensors(kin, source="test"))

    loaded = VideoMAEForPreTraining.from_pretrained(tmp_path / "out").eval()

    assert loaded.decoder.norm.eps == 1e-5  # which nothing in a folder can change
    _, said = told(loaded, a_clip(loaded.config)[1], theirs.is_hidden_BN)
    assert difference(said.logits, ours(kin, theirs)[1]) <= 1e-4


def test_in_double_precision_nothing_is_left_of_the_difference(tmp_path):
    theirs = peer("tiny")
    kin = imported(saved(tmp_path, theirs.model), TINY)
    pixels = a_clip(theirs.model.config)[1]
    visible_BK = (~theirs.is_hidden_BN).nonzero()[:, 1][None]
    model = huggingface_pretraining("tiny").double()
    patches_BKP = take_patches(pixels.transpose(1, 2).double(), visible_BK, kin.description.shape.patch)

    with torch.inference_mode():
        tokens_BKD = kin.encoder.double()(patches_BKP, visible_BK)
        theirs_BKD = model.videomae(pixels.double(), bool_masked_pos=theirs.is_hidden_BN).last_hidden_state

    assert difference(tokens_BKD, theirs_BKD) <= 1e-12


@pytest.mark.parametrize("frame, row, column", [(0, 0, 0), (5, 3, 17), (7, 23, 9)])
def test_a_single_lit_pixel_lights_the_peers_token(frame, row, column, tmp_path):
    model = huggingface_pretraining("tiny")
    kin = imported(saved(tmp_path, model), TINY)
    dark, lit = torch.zeros(2, 1, 8, 3, 24, 24)
    lit[0, frame, 1, row, column] = 1.0
    everything = torch.zeros(1, 36, dtype=torch.bool)

    def embedded(pixels: Tensor) -> tuple[Tensor, Tensor]:
        patches_BNP = take_patches(pixels.transpose(1, 2), torch.arange(36)[None], (2, 8, 8))
        with torch.inference_mode():
            return kin.encoder.embed(patches_BNP, None), model.videomae.embeddings(pixels, everything)

    changes = [after - before for before, after in zip(embedded(dark), embedded(lit), strict=True)]
    places = [change.abs().sum(dim=2)[0].nonzero().flatten().tolist() for change in changes]
    assert places[0] == places[1] == [frame // 2 * 9 + row // 8 * 3 + column // 8]
    assert difference(changes[0], changes[1]) <= 1e-6


@pytest.mark.slow
def test_pretraining_goes_on_from_an_official_file_with_its_decoder(tmp_path):
    theirs = peer("small").model
    save_kin(tmp_path / "ours", imported(saved(tmp_path, theirs)))
    path = Path(__file__).resolve().parents[2] / "configs" / "pretrain" / "videomae_small.yaml"
    config = load_config(PretrainConfig, path, [])
    grid = TokenGrid.of(config.clip.frames, config.clip.size, (2, 16, 16))
    model = build_autoencoder(config.model, grid, target=PixelTarget(), noise=NoNoise())

    said = open_start(str(tmp_path / "ours")).load_pretrained(model, config.target)

    assert said.endswith("the decoder is the one exported there")
    assert torch.equal(model.decoder.head.weight, theirs.decoder.head.weight)
