"""Benchmark attention kinds on the CPU against joint attention.

    python tests/benchmarks/attention.py               # base width, 2 blocks: about 2 minutes
    python tests/benchmarks/attention.py --size small  # quicker

Prints the time per block of an encoder's forward and backward on one clip with all tokens visible, on one
thread in fp32, for 16 and 32 frames of 224x224 (1568 and 3136 tokens). The embedding is included. One of
the two blocks has shifted windows. Work done once per forward (groups, some masks) is included and weighs
less in a deeper encoder. Kinds alternate; the minimum of each is printed. Time is CPU time of the process.
FlexAttention on a GPU is not measured.
"""

import argparse
import time
from dataclasses import replace

import torch
from torch import Tensor

from kinemae.data_tools.components import Component
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import SIZES
from kinemae.pretrain.model.tokens import TokenGrid

DEPTH = 2
KINDS = {
    "joint": Component(name="joint"),
    "divided": Component(name="divided"),
    "windowed, 4x7x7, shifted": Component(name="windowed"),
    "sparse, 3x3x3, all times of the location": Component(name="sparse"),
    "sparse, 3x3x3, top_k=4": Component(name="sparse", args={"top_k": 4}),
}


def seconds(encoder: Encoder, patches_BNP: Tensor) -> float:
    """Measure one forward and backward, without gradients from before."""
    encoder.zero_grad(set_to_none=True)
    start = time.process_time()
    encoder(patches_BNP, None).square().mean().backward()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", choices=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    named = SIZES[arguments.size].encoder
    for slices in (8, 16):
        grid = TokenGrid(slices, 14, 14)
        patches_BNP = torch.randn(1, grid.tokens, named.patch_values)
        encoders = {
            name: Encoder(replace(named, depth=DEPTH, attention=kind), grid) for name, kind in KINDS.items()
        }
        for encoder in encoders.values():
            seconds(encoder, patches_BNP)  # warm-up
        rounds = [
            {name: seconds(encoder, patches_BNP) for name, encoder in encoders.items()}
            for _ in range(arguments.repeats)
        ]
        best = {name: min(times[name] for times in rounds) for name in encoders}
        print(f"{arguments.size}, {grid.tokens} tokens, {DEPTH} blocks, fp32, 1 thread, 1 clip")
        for name, time_s in best.items():
            ratio = best["joint"] / time_s
            print(f"  {name:42}{1000 * time_s / DEPTH:8.0f} ms per block   joint / this {ratio:4.2f}")


if __name__ == "__main__":
    main()
