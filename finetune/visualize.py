"""`kinemae finetune visualize MODEL SOURCE OUT [a.b=c]`: pictures of a fine-tuned model on videos.

The files are those of `kinemae pretrain visualize`. The encoder gets the tokens that the model's own pruning
keeps. A head with cross-attention has a further view: the tokens that it attends to.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from kinemae.data_tools.config import load_config
from kinemae.data_tools.stream.frame_sampling import clip_with
from kinemae.finetune.inference.load import load
from kinemae.finetune.inference.video_model import VideoModel
from kinemae.finetune.layers.attention_pooling import CrossAttentionPool
from kinemae.pretrain.checkpoint_encoder import is_checkpoint
from kinemae.pretrain.folder_kinds import ENCODER, PRETRAINING, kind_of_folder
from kinemae.pretrain.runtime.processes import find_processes
from kinemae.pretrain.visualize import command
from kinemae.pretrain.visualize.open_model import subject_of
from kinemae.pretrain.visualize.settings import VisualizeConfig
from kinemae.pretrain.visualize.views import HeatMaps, Subject, View, Window

_NO_POOLING = "the model has no head with cross-attention, such as attentive and multilayer"
_NO_DECODER = "a fine-tuned model has no decoder; see kinemae pretrain visualize"


def run_visualize(arguments: argparse.Namespace) -> None:
    """Run the command."""
    folder = Path(arguments.model)
    if kind_of_folder(folder) in (PRETRAINING, ENCODER) or is_checkpoint(folder):
        command.run_visualize(arguments)  # with the decoder
        return
    settings = load_config(VisualizeConfig, None, arguments.overrides)
    processes = find_processes(settings.device)
    if not processes.is_first:
        return  # one process draws
    device = processes.device
    model = load(arguments.model, device=device)
    clip = clip_with(model.clip, stride=settings.stride, fps=settings.fps)
    command.visualize(
        subject_of_task(model) or subject_of(model.encoder, model.description, device),
        clip,
        settings,
        arguments,
        own={"reconstruction": _NO_DECODER, "pooling": pooling_of(model, settings) or _NO_POOLING},
        own_pruning=None if model.task_model is None else model.task_model.pruning,
    )


def subject_of_task(model: VideoModel) -> Subject | None:
    """A fine-tuned model with its pruning and its head; None for an encoder."""
    task_model = model.task_model
    if task_model is None:
        return None
    return Subject(
        encoder=task_model.encoder,
        run=task_model.output,
        mean=task_model.mean,
        std=task_model.std,
        chunks=task_model.chunks,
    )


def pooling_of(model: VideoModel, settings: VisualizeConfig) -> View | None:
    """The attention pooling of the head; None if it has none."""
    head = None if model.task_model is None else model.task_model.head
    pools = {} if head is None else _pools(head)
    if not pools:
        return None
    fewest = min(pool.q.out_features // pool.head_width for pool in pools.values())
    return AttentionPooling(pools, settings.head_numbers(fewest, owner="the head"))


def _pools(head: nn.Module) -> dict[str, CrossAttentionPool]:
    return {
        name.replace(".", " "): module
        for name, module in head.named_modules()
        if isinstance(module, CrossAttentionPool)
    }


class AttentionPooling(HeatMaps):
    """The attention of the head's learned queries to the tokens.

    Args:
        pools: the cross-attentions of the head by title.
        heads: numbers of attention heads; None for the mean of all.
    """

    name = "pooling"
    title = "Attention pooling of the head"
    text = (
        "How much each learned query of the head attends to each token, relative to the mean of all tokens. "
        "In a video of several windows each window is pooled alone."
    )
    unit = "times the mean"
    low = 0.0

    def __init__(self, pools: dict[str, CrossAttentionPool], heads: Sequence[int] | None):
        super().__init__()
        self.pools = pools
        self.heads = heads

    def maps(self, window: Window) -> dict[str, Tensor]:
        """See `HeatMaps.maps`."""
        found = {}
        for title, weight_AQN in self.weights(window).items():
            for query, weight_AN in enumerate(weight_AQN.unbind(1)):
                name = title if weight_AQN.shape[1] == 1 else f"{title} query {query}"
                if self.heads is None:
                    found[name] = self._on_grid(window, weight_AN.mean(dim=0))
                else:
                    found |= {f"{name} head {i}": self._on_grid(window, weight_AN[i]) for i in self.heads}
        return found

    def weights(self, window: Window) -> dict[str, Tensor]:
        """The softmax of each cross-attention, weight_AQN."""
        found: dict[str, Tensor] = {}
        hooks = []
        for title, pool in self.pools.items():

            def keep(pool: CrossAttentionPool, inputs: tuple[Tensor, ...], title: str = title) -> None:
                query_BAQF, key_BANF, _ = pool.project(*inputs[:2])
                score_BAQN = query_BAQF @ key_BANF.mT / math.sqrt(pool.head_width)
                found[title] = score_BAQN[0].float().softmax(dim=2)

            hooks.append(pool.register_forward_pre_hook(keep))
        try:
            window.subject.run(window.clip_1CTHW)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _on_grid(self, window: Window, weight_N: Tensor) -> Tensor:
        """The weights times their number, of the whole grid."""
        is_token = [each.is_token_N for each in window.passes]
        parts = (weight_N * len(weight_N)).split([int(each.sum()) for each in is_token])
        maps = []
        for of_pass, is_token_N, part_K in zip(window.passes, is_token, parts, strict=True):
            values_N = part_K.new_zeros(len(is_token_N))
            values_N[is_token_N] = part_K
            maps.append(of_pass.on_grid(values_N))
        return torch.cat(maps)
