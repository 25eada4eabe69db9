"""Maps of the encoder's tokens: similarity to a chosen patch, and principal components as colours."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.pretrain.clip_grid import Column
from kinemae.pretrain.model.tokens import COLOURS
from kinemae.pretrain.visualize.views import HeatMaps, View, Window, place_of, with_box

_MOST_TOKENS = 4096  # of each measured window


def block_tokens(window: Window, block: int) -> Tensor:
    """Tokens after a block and the final norm, for the whole grid; NaN for tokens that were not encoded."""
    norm = window.subject.encoder.norm
    return torch.cat([each.on_grid(norm(each.block_ND[block])) for each in window.passes]).float()


class TokenMeans:
    """The mean token of each block over the measured windows.

    The tokens of a masked autoencoder differ little compared with what they have in common, so maps are drawn
    without the mean.
    """

    def __init__(self, blocks: Sequence[int]):
        self.blocks = blocks
        self._tokens: dict[int, list[Tensor]] = {block: [] for block in blocks}

    def add(self, window: Window) -> None:
        """Add some tokens of a window, evenly spaced."""
        for block, parts in self._tokens.items():
            tokens_ND = block_tokens(window, block)
            tokens_ND = tokens_ND[~tokens_ND[:, 0].isnan()]
            parts.append(tokens_ND[:: -(-len(tokens_ND) // _MOST_TOKENS)])

    def tokens(self, block: int) -> Tensor:
        """The added tokens of a block, tokens_XD."""
        return torch.cat(self._tokens[block])


class Similarity(HeatMaps):
    """Cosine similarity of each token to the token at a point.

    Args:
        point: see `place_of`.
        point_s: time of the point; the window with the nearest frame must be measured.
    """

    name = "similarity"
    title = "Similarity to a patch"
    text = (
        "Cosine similarity of each token to the token of the framed patch, after the final norm and without "
        "the mean token. The patch is of one time; its token is compared with the tokens of the whole video."
    )
    unit = "cosine"
    point_s: float

    def __init__(self, blocks: Sequence[int], point: tuple[float, float], point_s: float):
        super().__init__()
        self.blocks = blocks
        self.point = point
        self.point_s = point_s
        self._means = TokenMeans(blocks)
        self._nearest: tuple[float, int, dict[int, Tensor]] | None = None

    def measure(self, window: Window) -> None:
        """See `View.measure`."""
        self._means.add(window)
        distance_s = float((window.time_T - self.point_s).abs().min())
        if self._nearest is None or distance_s < self._nearest[0]:
            number, position = self._place(window)
            of_pass, norm = window.passes[number], window.subject.encoder.norm
            chosen = {block: norm(of_pass.block_ND[block][position]).float() for block in self.blocks}
            self._nearest = (distance_s, window.number, chosen)

    def maps(self, window: Window) -> dict[str, Tensor]:
        """See `HeatMaps.maps`."""
        assert self._nearest is not None
        found = {}
        for block, chosen_D in self._nearest[2].items():
            mean_D = self._means.tokens(block).mean(dim=0)
            tokens_ND = block_tokens(window, block) - mean_D
            found[f"block {block}"] = F.cosine_similarity(tokens_ND, (chosen_D - mean_D)[None], dim=1)
        return found

    def columns(self, window: Window) -> list[Column]:
        """See `View.columns`."""
        clip, *maps = super().columns(window)
        assert self._nearest is not None
        if window.number == self._nearest[1]:
            clip = with_box(clip, window, *self._place(window))
        return [clip, *maps]

    def _place(self, window: Window) -> tuple[int, int]:
        frame = int((window.time_T - self.point_s).abs().argmin())
        return place_of(window, self.point, frame // window.subject.patch[0])

    def scale(self, title: str) -> tuple[float, float]:
        """The same scale for all blocks and videos."""
        return 0.0, 1.0


class PrincipalComponents(View):
    """The first three principal components of the tokens as red, green and blue.

    The components are those of the measured windows. Each sign makes the largest weight positive, so equal
    tokens give equal colours in every run.
    """

    name = "pca"
    title = "Principal components"
    text = (
        "The first three principal components of the tokens of a block, after the final norm, as red, green "
        "and blue. Components and scales are those of some windows of the video and are used for all of them."
    )

    def __init__(self, blocks: Sequence[int]):
        self._means = TokenMeans(blocks)
        self._fitted: dict[int, tuple[Tensor, ...]] = {}

    def measure(self, window: Window) -> None:
        """See `View.measure`."""
        self._means.add(window)

    def columns(self, window: Window) -> list[Column]:
        """See `View.columns`."""
        columns = [window.column("clip")]
        for block in self._means.blocks:
            colour_NC = self._colours(window, block)
            patches_NP = colour_NC.repeat(1, window.patches_1NP.shape[2] // COLOURS)
            columns.append(window.column(f"block {block}", patches_NP[None], legend=self._legend(block)))
        return columns

    def _colours(self, window: Window, block: int) -> Tensor:
        """colour_NC, uint8; black for tokens that were not encoded."""
        mean_D, axes_DC, low_C, high_C, _ = self._fit(block)
        values_NC = (block_tokens(window, block) - mean_D) @ axes_DC
        fraction_NC = ((values_NC - low_C) / (high_C - low_C).clamp(min=1e-6)).clamp(0, 1)
        return (255 * fraction_NC).nan_to_num().round().to(torch.uint8)

    def _legend(self, block: int) -> tuple[tuple[str, None], ...]:
        explained = float(self._fit(block)[4])
        return ((f"{explained:.0%} of the variance", None),)

    def _fit(self, block: int) -> tuple[Tensor, ...]:
        """Mean, axes, ends of the scales, and fraction of the variance."""
        if block not in self._fitted:
            tokens_XD = self._means.tokens(block)
            mean_D = tokens_XD.mean(dim=0)
            variance_D, axes_DD = torch.linalg.eigh((tokens_XD - mean_D).double().T.cov())
            axes_DC = axes_DD[:, -COLOURS:].flip(1)
            largest_C = axes_DC.gather(0, axes_DC.abs().argmax(dim=0, keepdim=True))[0]
            axes_DC = (axes_DC * largest_C.sign()).float()
            ends = torch.tensor([0.01, 0.99], device=tokens_XD.device)
            low_C, high_C = ((tokens_XD - mean_D) @ axes_DC).quantile(ends, dim=0)
            explained = variance_D[-COLOURS:].sum() / variance_D.sum().clamp(min=1e-12)
            self._fitted[block] = (mean_D, axes_DC, low_C, high_C, explained)
        return self._fitted[block]
