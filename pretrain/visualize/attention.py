"""Attention maps: of blocks and heads, and attention rollout."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from kinemae.pretrain.clip_grid import Column
from kinemae.pretrain.visualize.recording import Attention, ForwardPass
from kinemae.pretrain.visualize.views import HeatMaps, Window, place_of, with_box


class AttentionMaps(HeatMaps):
    """The attention that each token receives, or that a point gives, in some blocks; then the rollout.

    Values are relative to the mean over all tokens: with equal attention to all tokens each has the value 1.

    Args:
        heads: head numbers; None for the mean of all heads.
        point: give the attention from the token at this place in the middle slice; see `place_of`.
    """

    name = "attention"
    title = "Attention"
    text = (
        "How much attention each token gets, relative to the mean of all tokens: in a block, from all tokens "
        "or from the framed patch. Rollout (arXiv 2005.00928) multiplies the attention of all blocks, "
        "averaged over the heads and with half of the weight on the residual. The softmax is computed from "
        "the queries and keys of the model; token merging is off."
    )
    unit = "times the mean"
    low = 0.0

    def __init__(self, blocks: Sequence[int], heads: Sequence[int] | None, point: tuple[float, float] | None):
        super().__init__()
        self.blocks = blocks
        self.heads = heads
        self.point = point

    def maps(self, window: Window) -> dict[str, Tensor]:
        """See `HeatMaps.maps`."""
        found: dict[str, list[Tensor]] = {}
        for of_pass, start_N in zip(window.passes, self._starts(window), strict=True):
            for title, weight_N in self._maps(of_pass, start_N).items():
                found.setdefault(title, []).append(of_pass.on_grid(weight_N * of_pass.is_token_N.sum()))
        return {title: torch.cat(parts) for title, parts in found.items()}

    def columns(self, window: Window) -> list[Column]:
        """See `View.columns`."""
        clip, *maps = super().columns(window)
        if self.point is not None:
            clip = with_box(clip, window, *place_of(window, self.point, window.subject.grid.t // 2))
        return [clip, *maps]

    def _starts(self, window: Window) -> list[Tensor]:
        """The weight of each token as a query, for each pass."""
        if self.point is None:
            return [each.is_token_N / each.is_token_N.sum() for each in window.passes]
        starts = [torch.zeros_like(each.index_N, dtype=torch.float32) for each in window.passes]
        number, position = place_of(window, self.point, window.subject.grid.t // 2)
        starts[number][position] = 1
        return starts

    def _maps(self, of_pass: ForwardPass, start_N: Tensor) -> dict[str, Tensor]:
        """The weight of each token by title."""
        found = {}
        for block in self.blocks:
            for name, attention in _named(of_pass, block):
                weight_AN = attention.pull(start_N.expand(len(attention.query_ANF), -1))
                if self.heads is None:
                    found[name] = weight_AN.mean(dim=0)
                else:
                    found |= {f"{name} head {head}": weight_AN[head] for head in self.heads}
        return {**found, "rollout": rollout(of_pass, start_N)}


def rollout(of_pass: ForwardPass, start_N: Tensor) -> Tensor:
    """Attention rollout from the last block to the input tokens, as weight_N.

    Registers take part. A token merges half of each attention, averaged over the heads, with itself.
    """
    weight_N = start_N
    for attention in reversed(of_pass.attentions):
        pulled_AN = attention.pull(weight_N.expand(len(attention.query_ANF), -1))
        weight_N = (weight_N + pulled_AN.mean(dim=0)) / 2
    return weight_N


def _named(of_pass: ForwardPass, block: int) -> list[tuple[str, Attention]]:
    """The attentions of a block; several have the names of their patterns, as in `block 3 same slice`."""
    attentions = of_pass.of_block(block)
    if len(attentions) == 1:
        return [(f"block {block}", attentions[0])]
    kinds = [re.sub(r"(?<!^)(?=[A-Z])", " ", type(each.pattern).__name__).lower() for each in attentions]
    return [(f"block {block} {kind}", each) for kind, each in zip(kinds, attentions, strict=True)]
