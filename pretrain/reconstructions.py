"""Animated reconstructions of the same clips during training, in TensorBoard and in the run folder.

Columns, if they apply:

    clip                   the input clip
    encoder input          with noise; hidden patches are grey
    pruned                 tinted: tokens that are neither visible nor predicted
    prediction             mean and contrast of each patch are estimated from the visible patches around it
    with TRUE statistics   mean and contrast of each patch are the hidden patch's own, as in papers
    error                  on request: difference of the prediction to the clip, of each pixel

All columns show visible patches unchanged. A target that predicts no pixels (motion, features) has only the
first columns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.training_clips import RunClips
from kinemae.pretrain.callbacks import Schedule, eval_mode
from kinemae.pretrain.clip_grid import (
    FPS,
    HIDDEN,
    PRUNED,
    Column,
    draw_grid,
    heat_colours,
    replace_tokens,
    tint,
    token_mask,
)
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.tokens import (
    COLOURS,
    denormalize,
    gather_tokens,
    patchify,
    to_bytes,
    unpatchify,
)
from kinemae.pretrain.runtime.metrics import MetricsWriter, gif_bytes

_LEGENDS = {
    "encoder input": (("hidden", HIDDEN),),
    "pruned": (("neither visible nor predicted", PRUNED),),
    "error": (("not predicted", HIDDEN),),
}
_MOST_ERROR = 64  # grey levels, at the highest colour
_PREDICTIONS = (("prediction", True), ("with TRUE statistics", False))


@dataclass(kw_only=True)
class ReconstructionLogger:
    """Callback that draws reconstructions of a fixed range of clips.

    Attributes:
        clips: annotated with all hidden tokens as targets, except pruned ones.
        shown: the clips of the run to draw.
    """

    model: MaskedAutoencoder
    clips: RunClips[Any]
    shown: range
    schedule: Schedule
    folder: Path

    def is_due(self, first_step: int, last_step: int) -> bool:
        """See `runtime.loop.Callback`."""
        return self.schedule.is_due(first_step, last_step)

    def after_step(self, step: int, writer: MetricsWriter) -> None:
        """See `runtime.loop.Callback`."""
        grid_THWC = draw_clips(self.model, self.clips.batch(self.shown), seed=self.clips.seed)
        writer.write_animation("reconstruction", grid_THWC, step=step, fps=FPS)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"step-{step + 1:08d}.gif").write_bytes(gif_bytes(grid_THWC, fps=FPS))
        # Nothing is pruned in the first frame, and the middle one may be in the gap of `future` masks.
        frame_HWC = grid_THWC[3 * len(grid_THWC) // 4]
        Image.fromarray(frame_HWC).save(self.folder / f"step-{step + 1:08d}.png")


def draw_clips(model: MaskedAutoencoder, batch: ClipBatch, *, seed: int) -> np.ndarray:
    """Draw a row for each clip with the columns at the top of this file, as frames_THWC uint8."""
    device = next(model.parameters()).device
    with eval_mode(model):
        return draw_grid(reconstruction_columns(model, batch.to(device), seed=seed))


def reconstruction_columns(
    model: MaskedAutoencoder, batch: ClipBatch, *, seed: int, errors: bool = False
) -> list[Column]:
    """The columns at the top of this file, for a model in evaluation mode."""
    patch, grid = model.encoder.shape.patch, model.encoder.grid
    draws = ClipRandom(seed, batch.clip_index_B)
    prediction, inputs = model.predict(batch, draws)
    batch = model.standardized(batch)
    clean_BNP = patchify(batch.clip_BCTHW, patch)
    seen_BKP = to_bytes(denormalize(model.encoder_inputs(batch, draws).patches_BKP, model.mean, model.std))
    # Tokens that the encoder kept, which may be fewer than its input.
    is_used_BN = token_mask(inputs.visible_BK, grid.tokens) | token_mask(inputs.target_BM, grid.tokens)
    known_BNP = tint(clean_BNP, ~is_used_BN, PRUNED)
    grey_BNP = torch.full_like(clean_BNP, HIDDEN[0])
    patches = {
        "clip": clean_BNP,
        "encoder input": replace_tokens(grey_BNP, batch.tokens["visible"], seen_BKP),
    }
    if not is_used_BN.all():
        patches["pruned"] = known_BNP
    for title, visible_only in _PREDICTIONS:
        if prediction.decoded_BMP is None:
            break
        pixels_BMP = model.target.to_pixels(prediction.decoded_BMP, inputs, visible_only=visible_only)
        if pixels_BMP is not None:
            patches[title] = replace_tokens(known_BNP, inputs.target_BM, pixels_BMP)
            if errors and visible_only:
                clean_BMP = gather_tokens(clean_BNP, inputs.target_BM)
                patches["error"] = replace_tokens(grey_BNP, inputs.target_BM, _errors(clean_BMP, pixels_BMP))
    return [
        Column(
            title=title,
            clip_BCTHW=unpatchify(patches_BNP, grid, patch),
            legend=_LEGENDS.get(title, ()),
            scale=("0", str(_MOST_ERROR)) if title == "error" else None,
        )
        for title, patches_BNP in patches.items()
    ]


def _errors(clean_BMP: Tensor, pixels_BMP: Tensor) -> Tensor:
    """Absolute difference of each pixel, averaged over its colours, as the patches of a heat map."""
    error_BMP = (clean_BMP.float() - pixels_BMP.float()).abs()
    error_BMX = error_BMP.unflatten(2, (-1, COLOURS)).mean(dim=3)
    return heat_colours(error_BMX / _MOST_ERROR).round().to(torch.uint8).flatten(2)
