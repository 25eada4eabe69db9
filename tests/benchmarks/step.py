"""Benchmark training steps: pretraining against transformers' VideoMAE, fine-tuning with fewer tokens.

    python -m tests.benchmarks.step                         # base, 4 clips of 16x224x224: about 15 minutes
    python -m tests.benchmarks.step --only pretraining      # about 3 minutes
    python -m tests.benchmarks.step --size small --clips 1  # quicker

Pretraining: one forward and backward of a micro-batch, tube mask of 0.9, on one thread in fp32. The
reference is `VideoMAEForPreTraining` with PyTorch's fused attention. Rows: the same mathematics
(self-attention decoder, all hidden tokens), dual masking (half of them), and the cross-attention decoder on
a half and a quarter. The reference gets normalized floats; ours gets bytes, and its time includes
normalization.

Fine-tuning: all tokens against run-length pruning and merging, on clips of `../shared/videos/surveillance`
if there are any, else on synthetic ones. It also prints the change of the logits of a model with random
weights, relative to their size and to their spread over clips.

The steps alternate, and the minimum of each is printed. Time is CPU time of the process.
"""

import argparse
from typing import Literal

import torch
from torch import Tensor

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.sizes import SIZES, ModelConfig
from kinemae.pretrain.model.tokens import MEAN, STD, TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.targets.pixels import PixelTarget
from kinemae.pretrain.token_selection import TokenSelection
from tests.benchmarks.peers import why_missing
from tests.benchmarks.step_finetune import print_finetuning
from tests.benchmarks.timing import Step, min_seconds

PEER = "transformers, SDPA"
OURS: dict[str, tuple[Literal["self", "cross"], float]] = {
    "ours, same mathematics": ("self", 1.0),
    "ours, dual masking, 50 %": ("self", 0.5),
    "ours, cross, 50 % of the hidden": ("cross", 0.5),
    "ours, cross, 25 % of the hidden": ("cross", 0.25),
}


def our_step(config: ModelConfig, clip_BCTHW: Tensor) -> Step:
    """Make the step of our model, on the device of the clips."""
    model, batch = our_model(config, clip_BCTHW)
    draws = ClipRandom(0, batch.clip_index_B)
    return Step(model, lambda: model(batch, draws)["loss"].mean())


def our_model(config: ModelConfig, clip_BCTHW: Tensor) -> tuple[MaskedAutoencoder, ClipBatch]:
    """Our model and its batch, on the device of the clips."""
    grid = TokenGrid.of(clip_BCTHW.shape[2], clip_BCTHW.shape[4], config.shape().encoder.patch)
    model = build_autoencoder(config, grid, target=PixelTarget(), noise=NoNoise())
    patch = config.shape().encoder.patch
    split = TokenSelection(
        masking=TubeMasking(ratio=0.9), grid=grid, patch=patch, seed=0, predict_ratio=config.predict_ratio
    )
    clips = len(clip_BCTHW)
    rows = [split(clip_BCTHW[index, 0].cpu(), index) for index in range(clips)]
    batch = ClipBatch(
        pixels=clip_BCTHW,
        clip_index_B=torch.arange(clips),
        label_B=torch.zeros(clips, dtype=torch.int64),
        weight_B=torch.ones(clips),
        tokens={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )
    return model.to(clip_BCTHW.device), batch.to(clip_BCTHW.device)


def peer_step(config: ModelConfig, clip_BCTHW: Tensor) -> Step:
    """Make the step of transformers' model of the same shape, on the device of the clips."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    shape = config.shape()
    patch_frames, patch_size, _ = shape.encoder.patch
    peer = VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=clip_BCTHW.shape[4],
            num_frames=clip_BCTHW.shape[2],
            patch_size=patch_size,
            tubelet_size=patch_frames,
            hidden_size=shape.encoder.width,
            num_hidden_layers=shape.encoder.depth,
            num_attention_heads=shape.encoder.heads,
            intermediate_size=shape.encoder.mlp_width,
            decoder_hidden_size=shape.decoder.width,
            decoder_num_hidden_layers=shape.decoder.depth,
            decoder_num_attention_heads=shape.decoder.heads,
            decoder_intermediate_size=4 * shape.decoder.width,
            attn_implementation="sdpa",
        )
    )
    device = clip_BCTHW.device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1, 1) for values in (MEAN, STD))
    pixels = ((clip_BCTHW / 255 - mean) / std).transpose(1, 2).contiguous()
    grid = TokenGrid.of(clip_BCTHW.shape[2], clip_BCTHW.shape[4], shape.encoder.patch)
    is_hidden_BN = torch.zeros(len(clip_BCTHW), grid.tokens, dtype=torch.bool)
    for is_hidden_N in is_hidden_BN:
        is_hidden_N[TubeMasking(ratio=0.9).split(grid, torch.Generator())[1]] = True
    is_hidden_BN = is_hidden_BN.to(device)
    return Step(peer.to(device), lambda: peer(pixels, bool_masked_pos=is_hidden_BN).loss)


def print_pretraining(*, size: str, shape: tuple[int, ...], repeats: int) -> None:
    """Measure and print; `shape` is (B, C, T, H, W) of the clips."""
    clip_BCTHW = torch.randint(0, 256, shape, dtype=torch.uint8)
    no_peer = why_missing("transformers", "'transformers>=5,<6'")
    if no_peer:
        print(no_peer)
    steps = {} if no_peer else {PEER: peer_step(ModelConfig(size=size, decoder="self"), clip_BCTHW)}
    for name, (decoder, ratio) in OURS.items():
        steps[name] = our_step(ModelConfig(size=size, decoder=decoder, predict_ratio=ratio), clip_BCTHW)
    best = min_seconds(steps, repeats)
    print(f"{size}, {'x'.join(map(str, shape))}, tube 0.9, fp32, 1 thread, min of {repeats}")
    for name, time_s in best.items():
        speed_up = "" if no_peer else f"   ratio {best[PEER] / time_s:5.2f}"
        print(f"{name:34}{1000 * time_s / len(clip_BCTHW):9.0f} ms per clip{speed_up}")


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["pretraining", "finetuning"], help="run one of the two benchmarks")
    parser.add_argument("--size", default="base", choices=list(SIZES))
    parser.add_argument("--clips", type=int, default=4, help="clips in the micro-batch")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=224, help="height and width of the clip")
    parser.add_argument(
        "--stride",
        type=int,
        default=2,
        help="fine-tuning: video frames from one frame of the clip to the next",
    )
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = (arguments.clips, 3, arguments.frames, arguments.pixels, arguments.pixels)
    if arguments.only != "finetuning":
        print_pretraining(size=arguments.size, shape=shape, repeats=arguments.repeats)
    if arguments.only != "pretraining":
        print_finetuning(size=arguments.size, shape=shape, stride=arguments.stride, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
