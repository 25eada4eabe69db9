"""Pictures of what the model is given and what it makes of it: animated, in TensorBoard and in the run
folder.

Columns: the clip; what the encoder sees of it (noise included, the hidden part grey); the prediction,
honest: each patch's
brightness and contrast come from the visible patches around; the prediction as papers show it, where every
hidden patch
lends its own true brightness and contrast. Visible patches stand in all of them as they are.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from data_tools.randomness import ClipRandom
from data_tools.stream.batch import ClipBatch
from data_tools.stream.loader import TrainingClips
from pretrain.model.autoencoder import MaskedAutoencoder
from pretrain.model.tokens import denormalise, patchify, to_bytes, unpatchify
from pretrain.runtime.metrics import MetricsWriter, gif_bytes

_HIDDEN_GREY = 128
_SMALLEST_SIDE_PX = 128
_GAP_PX = 4
_TITLE_PX = 16
_FPS = 6.0
_TITLES = ("clip", "encoder input", "prediction", "with TRUE statistics")


@dataclass(kw_only=True)
class PictureBook:
    """Draws the same few clips again and again while the model learns.

    Attributes:
        clips: annotates with all hidden tokens as "wanted".
        every_steps: drawn at the first report after each multiple of it, and after the last step.
    """

    model: MaskedAutoencoder
    clips: TrainingClips
    count: int
    every_steps: int
    last_step: int
    folder: Path
    _page: int | None = None

    def after_step(self, step: int, writer: MetricsWriter) -> None:
        """See `runtime.loop.Watcher`."""
        page = (step + 1) // self.every_steps
        is_new_page = page > (step // self.every_steps if self._page is None else self._page)
        self._page = page
        if step != self.last_step and not is_new_page:
            return
        sheet_THWC = draw_clips(self.model, self.clips.batch(range(self.count)), seed=self.clips.seed)
        writer.write_animation("reconstruction", sheet_THWC, step=step, fps=_FPS)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"step-{step + 1:08d}.gif").write_bytes(gif_bytes(sheet_THWC, fps=_FPS))
        Image.fromarray(sheet_THWC[0]).save(self.folder / f"step-{step + 1:08d}.png")


def draw_clips(model: MaskedAutoencoder, batch: ClipBatch, *, seed: int) -> np.ndarray:
    """A sheet with a row for each clip and the columns of this file's head, as frames_THWC uint8."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad():
        rows_RCTHW = _columns(model, batch.to(device), seed)
    model.train(was_training)
    return _sheet([column_BCTHW.cpu() for column_BCTHW in rows_RCTHW])


def _columns(model: MaskedAutoencoder, batch: ClipBatch, seed: int) -> list[Tensor]:
    """The columns' clips, each uint8 (B, C, T, H, W)."""
    clip_BCTHW, visible_BK, wanted_BM = batch.clip_BCTHW, batch.tokens["visible"], batch.tokens["wanted"]
    patch, grid = model.encoder.shape.patch, model.encoder.grid
    draws = ClipRandom(seed, batch.clip_index_B)
    prediction_BMP = model.predict(batch, draws)
    clean_BNP = patchify(clip_BCTHW, patch)
    seen_BKP = to_bytes(denormalise(model.seen(batch, draws)))
    input_BNP = _put(torch.full_like(clean_BNP, _HIDDEN_GREY), visible_BK, seen_BKP)
    columns = [clean_BNP, input_BNP]
    for looked_at_BK in (visible_BK, None):
        pixels_BMP = model.target.to_pixels(
            prediction_BMP, clip_BCTHW, wanted_BM=wanted_BM, visible_BK=looked_at_BK, patch=patch
        )
        if pixels_BMP is not None:
            columns.append(_put(clean_BNP, wanted_BM, pixels_BMP))
    return [unpatchify(column_BNP, grid, patch) for column_BNP in columns]


def _put(patches_BNP: Tensor, index_BK: Tensor, values_BKP: Tensor) -> Tensor:
    """A copy with the named tokens replaced."""
    return patches_BNP.scatter(1, index_BK[..., None].expand_as(values_BKP), values_BKP.to(patches_BNP.dtype))


def _sheet(columns: list[Tensor]) -> np.ndarray:
    clips, channels, frames, height, width = columns[0].shape
    scale = max(1, -(-_SMALLEST_SIDE_PX // height))
    cell_h, cell_w = height * scale + _GAP_PX, width * scale + _GAP_PX
    head_HWC = _titles(len(columns), cell_w)
    sheet_THWC = np.full((frames, _TITLE_PX + clips * cell_h, len(columns) * cell_w, channels), 255, np.uint8)
    sheet_THWC[:, :_TITLE_PX] = head_HWC
    for x, column_BCTHW in enumerate(columns):
        big = column_BCTHW.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
        for y, clip_TCHW in enumerate(big.permute(0, 2, 3, 4, 1).numpy()):
            top, left = _TITLE_PX + y * cell_h, x * cell_w
            sheet_THWC[:, top : top + height * scale, left : left + width * scale] = clip_TCHW
    return sheet_THWC


def _titles(count: int, cell_w: int) -> np.ndarray:
    strip = Image.new("RGB", (count * cell_w, _TITLE_PX), "white")
    pen = ImageDraw.Draw(strip)
    for x, title in enumerate(_TITLES[:count]):
        pen.text((x * cell_w + 2, 2), title, fill="black")
    return np.asarray(strip)
