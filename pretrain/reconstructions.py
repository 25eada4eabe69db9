"""Pictures of what the model is given and what it makes of it: animated, in TensorBoard and in the run
folder.

Columns, those that there is something to show of:

    clip                   what was cut from the video
    encoder input          noise included, the hidden part grey
    pruned                 tinted: tokens that are neither seen nor predicted
    prediction             honest: each patch's brightness and contrast come from the visible patches around
    with TRUE statistics   as papers show it: every hidden patch lends its own brightness and contrast

Visible patches stand in all of them as they are. A target without pictures (motion, features) has the first
columns alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.loader import TrainingClips
from kinemae.pretrain.callbacks import Schedule, at_rest
from kinemae.pretrain.clip_grid import FPS, HIDDEN, PRUNED, Column, draw_sheet, named_tokens, put, tint
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder
from kinemae.pretrain.model.tokens import denormalise, patchify, to_bytes, unpatchify
from kinemae.pretrain.runtime.metrics import MetricsWriter, gif_bytes

_KEYS = {"encoder input": (("hidden", HIDDEN),), "pruned": (("neither seen nor predicted", PRUNED),)}
_PREDICTIONS = (("prediction", True), ("with TRUE statistics", False))


@dataclass(kw_only=True)
class PictureBook:
    """Draws the same few clips again and again while the model learns.

    Attributes:
        clips: annotates with all hidden tokens as "target", but for those that pruning leaves out.
        shown: which clips of the run.
    """

    model: MaskedAutoencoder
    clips: TrainingClips
    shown: range
    schedule: Schedule
    folder: Path

    def is_due(self, first_step: int, last_step: int) -> bool:
        """See `runtime.loop.Watcher`."""
        return self.schedule.is_due(first_step, last_step)

    def after_step(self, step: int, writer: MetricsWriter) -> None:
        """See `runtime.loop.Watcher`."""
        sheet_THWC = draw_clips(self.model, self.clips.batch(self.shown), seed=self.clips.seed)
        writer.write_animation("reconstruction", sheet_THWC, step=step, fps=FPS)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"step-{step + 1:08d}.gif").write_bytes(gif_bytes(sheet_THWC, fps=FPS))
        # The middle says most: in the first frame nothing has moved yet, so nothing is pruned there.
        middle_HWC = sheet_THWC[len(sheet_THWC) // 2]
        Image.fromarray(middle_HWC).save(self.folder / f"step-{step + 1:08d}.png")


def draw_clips(model: MaskedAutoencoder, batch: ClipBatch, *, seed: int) -> np.ndarray:
    """A sheet with a row for each clip and the columns of this file's head, as frames_THWC uint8."""
    device = next(model.parameters()).device
    with at_rest(model):
        return draw_sheet(_columns(model, batch.to(device), seed))


def _columns(model: MaskedAutoencoder, batch: ClipBatch, seed: int) -> list[Column]:
    patch, grid = model.encoder.shape.patch, model.encoder.grid
    draws = ClipRandom(seed, batch.clip_index_B)
    prediction, inputs = model.predict(batch, draws)
    clean_BNP = patchify(batch.clip_BCTHW, patch)
    seen_BKP = to_bytes(denormalise(model.encoder_inputs(batch, draws).patches_BKP, model.mean, model.std))
    # Those that the encoder kept, which may be fewer than those that it was given.
    is_used_BN = named_tokens(inputs.visible_BK, grid.tokens) | named_tokens(inputs.target_BM, grid.tokens)
    known_BNP = tint(clean_BNP, ~is_used_BN, PRUNED)
    grey_BNP = torch.full_like(clean_BNP, HIDDEN[0])
    patches = {"clip": clean_BNP, "encoder input": put(grey_BNP, batch.tokens["visible"], seen_BKP)}
    if not is_used_BN.all():
        patches["pruned"] = known_BNP
    for title, visible_only in _PREDICTIONS:
        if prediction.decoded_BMP is None:
            break
        pixels_BMP = model.target.to_pixels(prediction.decoded_BMP, inputs, visible_only=visible_only)
        if pixels_BMP is not None:
            patches[title] = put(known_BNP, inputs.target_BM, pixels_BMP)
    return [
        Column(title=title, clip_BCTHW=unpatchify(patches_BNP, grid, patch), key=_KEYS.get(title, ()))
        for title, patches_BNP in patches.items()
    ]
