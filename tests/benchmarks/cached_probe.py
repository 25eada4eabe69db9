"""Train an attentive probe on cached features: equals `adapt.method=frozen` without augmentation.

    python -m tests.benchmarks.cached_probe ENCODER SHARDS RESULT.json SEED

ENCODER is the folder of an exported encoder, or "random".
"""

import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from kinemae.data_tools.components import Component
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.loader import ClipConfig, evaluation_loader
from kinemae.data_tools.stream.yuv_to_rgb import on_device
from kinemae.finetune.heads.base import Features, build_head
from kinemae.pretrain.exported_model import load_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid, normalize, patchify

STEPS = 600
BATCH = 64
RATE = 3e-3
FRAMES, SIDE_PX = 8, 32


def encoder_of(name: str) -> Encoder:
    """Load an exported encoder, or build one with random weights."""
    if name != "random":
        return load_encoder(Path(name))[0]
    shape = ModelConfig(size="tiny", patch_size=8).shape().encoder
    return Encoder(shape, TokenGrid.of(FRAMES, SIDE_PX, shape.patch))


@torch.no_grad()
def features(encoder: Encoder, shards: Path) -> tuple[Tensor, Tensor]:
    """Compute tokens_BND and label_B of all clips of a data set."""
    found = evaluation_loader(
        open_index(str(shards), cache=None),
        clip=ClipConfig(frames=FRAMES, stride=1, size=SIDE_PX),
        temporal_clips=1,
        spatial_crops=1,
        rank=0,
        world=1,
        workers=0,
        timeout_s=60,
    )
    tokens, labels = [], []
    for item in found:
        clip_BCTHW = on_device(item.pixels, torch.device("cpu"))
        tokens.append(encoder(normalize(patchify(clip_BCTHW, encoder.shape.patch)), None))
        labels.append(item.label)
    return torch.cat(tokens), torch.tensor(labels)


def main() -> None:
    """Train the probe and write its score."""
    name, shards, result, seed = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    encoder = encoder_of(name).eval()
    tokens_BND, label_B = features(encoder, shards / "train")
    held_out_BND, truth_B = features(encoder, shards / "validation")
    component = Component(name="attentive", args={"norm": "standardize"})
    head = build_head(component, width=tokens_BND.shape[2], outputs=int(label_B.max()) + 1)
    head.calibrate(Features(tokens_BND))
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, betas=(0.9, 0.999), weight_decay=0.05)
    warmup = STEPS // 10
    for step in range(STEPS):
        factor = (step + 1) / warmup if step < warmup else 0.5 + 0.5 * math.cos(math.pi * step / STEPS)
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, factor)
        chosen = torch.randint(len(label_B), (BATCH,))
        logits_BY = head(Features(tokens_BND[chosen]), None)
        loss = functional.cross_entropy(logits_BY, label_B[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        correct_B = head(Features(held_out_BND), None).argmax(dim=1) == truth_B
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"top1": correct_B.float().mean().item(), "videos": len(truth_B)}) + "\n")


if __name__ == "__main__":
    main()
