"""Views of token reduction: tokens that pruning drops, and groups of tokens that merging averages."""

import colorsys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kinemae.data_tools.stream.yuv_to_rgb import to_luma
from kinemae.pretrain.clip_grid import PRUNED, Column, tint, token_mask
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.merging import Merging, merging_blocks
from kinemae.pretrain.model.packing import Packing, kept_count, top_tokens
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.visualize.recording import ForwardPass
from kinemae.pretrain.visualize.views import HeatMaps, Subject, View, Window

_GOLDEN = 0.618034  # steps of this size spread hues evenly


class PrunedTokens(HeatMaps):
    """The tokens that pruning strategies drop, and the scores of the encoder's own scorer.

    Args:
        strategies: the strategies by title.
    """

    name = "pruning"
    title = "Token pruning"
    text = (
        "Red tokens are dropped by the strategy; the percentage is that of the measured windows. A fixed "
        "fraction (keep) drops the lowest-scored tokens of each window, a threshold any number of them. The "
        "learned strategy uses the encoder's scorer, whose scores are shown too."
    )

    def __init__(self, strategies: Mapping[str, Pruning]):
        super().__init__()
        self.strategies = strategies
        self._kept: dict[str, list[Tensor]] = {title: [] for title in strategies}

    def maps(self, window: Window) -> dict[str, Tensor]:
        """The learned scores; see `HeatMaps.maps`."""
        if not any(strategy.is_learned for strategy in self.strategies.values()):
            return {}
        scores = [learned_scores(window.subject, chunk_1CTHW)[0] for chunk_1CTHW in window.chunks]
        return {"learned score": torch.cat(scores)}

    def measure(self, window: Window) -> None:
        """See `View.measure`."""
        super().measure(window)
        for title, strategy in self.strategies.items():
            self._kept[title].append(_kept(window, strategy).float().mean())

    def columns(self, window: Window) -> list[Column]:
        """See `View.columns`."""
        clip, *scores = super().columns(window)
        pruned = []
        for title, strategy in self.strategies.items():
            tinted_1NP = tint(window.patches_1NP, ~_kept(window, strategy)[None], PRUNED)
            fraction = 1 - float(torch.stack(self._kept[title]).mean())
            pruned.append(window.column(title, tinted_1NP, legend=((f"dropped: {fraction:.0%}", PRUNED),)))
        return [clip, *pruned, *scores]


def _kept(window: Window, strategy: Pruning) -> Tensor:
    """is_kept_N of the whole clip."""
    subject = window.subject
    return torch.cat([kept_tokens(subject, strategy, chunk_1CTHW) for chunk_1CTHW in window.chunks])


def kept_tokens(subject: Subject, strategy: Pruning, clip_1CTHW: Tensor) -> Tensor:
    """The tokens of a clip that a strategy keeps in inference, as is_kept_N; equal to those of a fine-tuned
    model.
    """
    encoder = subject.encoder
    if strategy.is_learned:
        score_1N = learned_scores(subject, clip_1CTHW)
        is_kept_1N = score_1N > encoder.scorer.threshold
    else:
        scores = strategy.score_tokens(to_luma(clip_1CTHW), subject.patch)
        score_1N, is_kept_1N = scores.score_BN, scores.is_kept_BN
    if strategy.keep is None:
        index_1K = Packing.of(is_kept_1N, score_1N).index_1L
    else:
        index_1K = top_tokens(score_1N, kept_count(score_1N.shape[1], strategy.keep))
    return token_mask(index_1K, encoder.grid.tokens)[0]


def learned_scores(subject: Subject, clip_1CTHW: Tensor) -> Tensor:
    """The scores of the encoder's scorer for all tokens of a clip, score_1N."""
    patches_1NP = subject.encoder.patches(clip_1CTHW, mean=subject.mean, std=subject.std)
    score_1N: Tensor = subject.encoder.scorer(subject.encoder.embed(patches_1NP, None))
    return score_1N


class MergedGroups(View):
    """The groups of token merging after some blocks.

    Args:
        per_block: number of tokens to merge in each block.
    """

    name = "merging"
    title = "Token merging"
    text = (
        "Tokens that are merged into one have the same colour, also at different times of a window. Tokens "
        "without a tint are not merged. Colours of different windows are not related."
    )

    def __init__(self, blocks: Sequence[int], per_block: int):
        self.blocks = blocks
        self.per_block = per_block

    def columns(self, window: Window) -> list[Column]:
        """See `View.columns`."""
        groups = [merged_groups(window.subject.encoder, each, self.per_block) for each in window.passes]
        return [window.column("clip"), *(self._column(window, groups, block) for block in self.blocks)]

    def _column(self, window: Window, groups: list[list[Tensor]], block: int) -> Column:
        colours, left, tokens = [], 0, 0
        for of_pass, after in zip(window.passes, groups, strict=True):
            group_N, is_token_N = after[block], of_pass.is_token_N
            colours.append(of_pass.on_grid(_group_colours(group_N)))
            left += len(group_N[is_token_N].unique())
            tokens += int(is_token_N.sum())
        colour_NC = torch.cat(colours)
        is_merged_1N = ~colour_NC[:, 0].isnan()[None]
        tinted_1NP = tint(window.patches_1NP, is_merged_1N, colour_NC.nan_to_num()[None])
        return window.column(
            f"after block {block}", tinted_1NP, legend=((f"{left} of {tokens} tokens", None),)
        )


def _group_colours(group_N: Tensor) -> Tensor:
    """A colour for each group, the largest groups first, as colour_NC; NaN for single tokens."""
    count_G = group_N.bincount()
    rank_G = count_G.argsort(descending=True, stable=True).argsort()
    colours = [colorsys.hsv_to_rgb(rank * _GOLDEN % 1, 0.9, 1.0) for rank in rank_G.tolist()]
    colour_GC = 255 * torch.tensor(colours, device=group_N.device)
    colour_GC[count_G < 2] = torch.nan
    return colour_GC[group_N]


class _RecordedMerging(Merging):
    """Merging that keeps the groups after each block."""

    def __init__(self, per_block: int, index_BN: Tensor, *, registers: int):
        super().__init__(per_block, index_BN, registers=registers)
        self.after: list[Tensor] = []

    def merge(self, x_BND: Tensor) -> Tensor:
        merged_BKD = super().merge(x_BND)
        self.after.append(self.group_BN[0])
        return merged_BKD


def merged_groups(encoder: Encoder, of_pass: ForwardPass, per_block: int) -> list[Tensor]:
    """The group of each token of the sequence after each block, group_N."""
    assert of_pass.input_ND is not None
    merging = _RecordedMerging(per_block, of_pass.index_N[None], registers=encoder.shape.registers)
    merging_blocks(
        encoder.blocks,  # type: ignore[arg-type]
        of_pass.input_ND[None],
        merging,
        pos_embed=encoder.pos_embed,
        keep=lambda block: None,
    )
    return merging.after
