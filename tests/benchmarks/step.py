"""How long a pretraining step takes, against transformers' VideoMAE on the same machine.

    python tests/benchmarks/step.py                        # base, 4 clips of 16x224x224: about 2 minutes
    python tests/benchmarks/step.py --size small --clips 1  # quicker

Prints, on one thread in fp32, the time of a step (forward and backward, one micro-batch) of
`VideoMAEForPreTraining` with PyTorch's fused attention divided by ours: for the same mathematics
(self-attention decoder over all hidden tokens) and for the cross-attention decoder on half of the hidden
tokens. Tube mask of 0.9. The peer gets floats that are normalised already, ours gets bytes and normalises
them within its time. The steps take turns, and each one's least time counts: a busy machine disturbs both
alike. Time is the process's own, which on one thread is the clock's but for what others take.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from data_tools.randomness import ClipRandom
from data_tools.stream.batch import ClipBatch
from pretrain.masking.base import TokenSplit
from pretrain.masking.tube import TubeMasking
from pretrain.model.autoencoder import build_autoencoder
from pretrain.model.sizes import SIZES, ModelConfig
from pretrain.model.tokens import MEAN, STD, TokenGrid
from pretrain.noise.none import NoNoise
from pretrain.targets.pixels import PixelTarget

PEER = "transformers, SDPA"
SAME = "ours, same mathematics"
CROSS = "ours, cross, 50 % of the hidden"


class Step(NamedTuple):
    """A model and the loss of one micro-batch under it."""

    model: nn.Module
    loss: Callable[[], Tensor]


def our_step(config: ModelConfig, clip_BCTHW: Tensor) -> Step:
    """Our model's step."""
    grid = TokenGrid.of(clip_BCTHW.shape[2], clip_BCTHW.shape[4], config.shape().encoder.patch)
    model = build_autoencoder(config, grid, target=PixelTarget(), noise=NoNoise())
    split = TokenSplit(masking=TubeMasking(ratio=0.9), grid=grid, seed=0, predict_share=config.predict_share)
    clips = len(clip_BCTHW)
    rows = [split(clip_BCTHW[index], index) for index in range(clips)]
    batch = ClipBatch(
        pixels=clip_BCTHW,
        clip_index_B=torch.arange(clips),
        label_B=torch.zeros(clips, dtype=torch.int64),
        weight_B=torch.ones(clips),
        tokens={name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )
    draws = ClipRandom(0, batch.clip_index_B)
    return Step(model, lambda: model(batch, draws)["loss"].mean())


def peer_step(config: ModelConfig, clip_BCTHW: Tensor) -> Step:
    """The step of transformers' model of the same shape."""
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
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    pixels = ((clip_BCTHW / 255 - mean) / std).transpose(1, 2).contiguous()
    grid = TokenGrid.of(clip_BCTHW.shape[2], clip_BCTHW.shape[4], shape.encoder.patch)
    is_hidden_BN = torch.zeros(len(clip_BCTHW), grid.tokens, dtype=torch.bool)
    for is_hidden_N in is_hidden_BN:
        is_hidden_N[TubeMasking(ratio=0.9).split(grid, torch.Generator())[1]] = True
    return Step(peer, lambda: peer(pixels, bool_masked_pos=is_hidden_BN).loss)


def seconds(step: Step) -> float:
    """Time of one forward and backward, from no gradients as an optimiser leaves them."""
    step.model.zero_grad(set_to_none=True)
    start = time.process_time()
    step.loss().backward()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", choices=list(SIZES))
    parser.add_argument("--clips", type=int, default=4, help="clips in the micro-batch")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=224, help="height and width of the clip")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = (arguments.clips, 3, arguments.frames, arguments.pixels, arguments.pixels)
    clip_BCTHW = torch.randint(0, 256, shape, dtype=torch.uint8)
    same = ModelConfig(size=arguments.size, decoder="self", predict_share=1.0)
    cross = ModelConfig(size=arguments.size, decoder="cross", predict_share=0.5)
    steps = {
        PEER: peer_step(same, clip_BCTHW),
        SAME: our_step(same, clip_BCTHW),
        CROSS: our_step(cross, clip_BCTHW),
    }
    for step in steps.values():
        seconds(step)  # the first one allocates
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(arguments.repeats)]
    best = {name: min(times[name] for times in rounds) for name in steps}
    print(
        f"{arguments.size}, {'x'.join(map(str, shape))}, tube 0.9, fp32, 1 thread, min of {arguments.repeats}"
    )
    for name, time_s in best.items():
        print(f"{name:34}{1000 * time_s / arguments.clips:9.0f} ms a clip   ratio {best[PEER] / time_s:5.2f}")


if __name__ == "__main__":
    main()
