"""transformers' VideoMAEForPreTraining with its own recipe, in a plain PyTorch loop on our reader's clips.

Recipe (arXiv 2203.12602, appendix): tube mask of 0.9, a self-attention decoder of four blocks with half of
the encoder's width on all tokens, pixels normalized in each patch, AdamW with betas of 0.9 and 0.95 and a
weight decay of 0.05, warm-up and cosine, random resized crops, no flips and no colour changes. The learning
rate is that of short runs with small batches; the paper's rule (1.5e-4 * batch / 256) would give 2e-5.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.training_clips import TrainingClips
from kinemae.finetune.conversion.command import convert
from kinemae.finetune.conversion.model_bundle import save_bundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import load_checkpoint
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.masking.tube import TubeMasking
from kinemae.pretrain.model import flops  # noqa: F401 - registers the counter of fused attention on the CPU
from kinemae.pretrain.model.tokens import MEAN, STD, TokenGrid
from kinemae.pretrain.runtime.optimizer import learning_rate, parameter_groups
from kinemae.pretrain.runtime.settings import OptimConfig
from kinemae.pretrain.token_selection import TokenSelection

STATE = "state.pt"


@dataclass(frozen=True, kw_only=True)
class PeerRecipe:
    """What differs from the base config: masks, decoder, optimizer and crops."""

    mask_ratio: float
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    optim: OptimConfig
    augment: AugmentConfig

    @staticmethod
    def of(tree: dict[str, Any]) -> "PeerRecipe":
        """Build from a mapping; keys of `optim` and `augment` may be dotted."""
        parts: dict[str, Any] = {name: dict(tree[name]) for name in ("optim", "augment")}
        for key, value in tree.items():
            name, _, rest = key.partition(".")
            if rest:
                parts[name][rest] = value
        plain = {key: value for key, value in tree.items() if "." not in key and key not in parts}
        return PeerRecipe(
            **plain, optim=OptimConfig(**parts["optim"]), augment=AugmentConfig(**parts["augment"])
        )


def build_peer(base: PretrainConfig, recipe: PeerRecipe) -> nn.Module:
    """Build the model with the encoder of the base config; seed PyTorch beforehand."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining  # only this row needs it

    shape = base.model.shape().encoder
    return VideoMAEForPreTraining(
        VideoMAEConfig(
            image_size=base.clip.size,
            num_frames=base.clip.frames,
            patch_size=shape.patch[1],
            tubelet_size=shape.patch[0],
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=shape.mlp_width,
            decoder_hidden_size=recipe.decoder_width,
            decoder_num_hidden_layers=recipe.decoder_depth,
            decoder_num_attention_heads=recipe.decoder_heads,
            decoder_intermediate_size=4 * recipe.decoder_width,
            norm_pix_loss=True,
            attn_implementation="sdpa",
        )
    )


def _tubes(base: PretrainConfig, recipe: PeerRecipe) -> TokenSelection:
    patch = base.model.shape().encoder.patch
    return TokenSelection(
        masking=TubeMasking(ratio=recipe.mask_ratio),
        grid=TokenGrid.of(base.clip.frames, base.clip.size, patch),
        patch=patch,
        seed=base.seed,
    )


def peer_loss(model: nn.Module, clip_BCTHW: Tensor, target_BM: Tensor, tokens: int) -> Tensor:
    """Run the model on uint8 clips; `target_BM` are the hidden tokens out of `tokens`."""
    mean_C, std_C = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
    pixels_BTCHW = ((clip_BCTHW / 255 - mean_C) / std_C).transpose(1, 2).contiguous()
    is_hidden_BN = torch.zeros(len(clip_BCTHW), tokens, dtype=torch.bool).scatter_(1, target_BM, True)
    loss: Tensor = model(pixels_BTCHW, bool_masked_pos=is_hidden_BN).loss
    return loss


def peer_flops(base: PretrainConfig, recipe: PeerRecipe) -> int:
    """The training FLOPs of one clip, by the rules of `kinemae.pretrain.model.flops`."""
    tubes, clips = _tubes(base, recipe), 2
    clip_BCTHW = torch.zeros(clips, 3, base.clip.frames, base.clip.size, base.clip.size, dtype=torch.uint8)
    target_BM = torch.stack([tubes(None, clip)["target"] for clip in range(clips)])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        peer_loss(build_peer(base, recipe), clip_BCTHW, target_BM, tubes.grid.tokens)
    return 3 * counter.get_total_flops() // clips


def train_peer(base: PretrainConfig, recipe: PeerRecipe, folder: Path) -> None:
    """Train for `base.steps`, continue an interrupted run of `folder`, and save `folder / "encoder"`."""
    torch.manual_seed(base.seed)
    folder.mkdir(parents=True, exist_ok=True)
    model, tubes = build_peer(base, recipe), _tubes(base, recipe)
    groups = parameter_groups(model, recipe.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.optim.lr, betas=tuple(recipe.optim.betas), fused=True)
    first = _load(folder / STATE, model, optimizer)
    assert base.data.shards is not None
    clips = TrainingClips(
        open_index(base.data.shards),
        clip=base.clip,
        augment=recipe.augment,
        seed=base.seed,
        annotate=tubes,
        needs_luma=False,
    )
    batch_clips = base.batch.global_clips
    for step in range(first, base.steps):
        batch = clips.batch(range(step * batch_clips, (step + 1) * batch_clips))
        loss = peer_loss(model, batch.clip_BCTHW, batch.tokens["target"], tubes.grid.tokens)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, base.steps, recipe.optim)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % base.save_every_steps == 0 or step + 1 == base.steps:
            _save(folder / STATE, model, optimizer, step + 1)
    _export(model, folder, base)


def steps_done(folder: Path) -> int:
    """The number of steps in the saved state of a run."""
    path = folder / STATE
    return int(torch.load(path, weights_only=True)["step"]) if path.exists() else 0


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a state if there is one; return the number of steps done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    partial.replace(path)


def _export(model: Any, folder: Path, base: PretrainConfig) -> None:
    """Save for transformers, and convert with our importer."""
    model.save_pretrained(folder / "transformers")
    bundle = convert(load_checkpoint(folder / "transformers"), ImportOptions())
    clip = base.clip
    description = replace(bundle.description, stride=clip.stride, fps=clip.fps, sampling=clip.sampling)
    save_bundle(folder / "encoder", replace(bundle, description=description))
