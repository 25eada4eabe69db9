"""Teacher target: features of a frozen encoder on the whole clean clip, at the target tokens."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.pretrain.exported_model import load_description, load_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.targets.base import EncoderTarget, TargetInputs


class TeacherTarget(EncoderTarget):
    """Predicts the features of a frozen teacher; the decoder is the predictor.

    This is the second stage of SALT (arXiv 2509.24317); the first is a run with `target=pixels`. The teacher
    may have another width, depth and patch, and clips of another size, if its token grid is the model's:
    frames are then taken at their nearest times and pixels interpolated. It uses its own normalization of
    pixels. It is not part of the checkpoints and is loaded at each start.

    Differences to SALT: those of `FeatureTarget` to V-JEPA, and the teacher's features are layer-normalized.

    Args:
        encoder: folder of an exported encoder, such as `RUN/encoder`.
        loss, beta, last_layers, motion_weight: see `EncoderTarget`.
    """

    def __init__(
        self,
        *,
        encoder: str,
        loss: str = "l1",
        beta: float = 1.0,
        last_layers: int = 1,
        motion_weight: float = 0.0,
    ):
        super().__init__(loss=loss, beta=beta, last_layers=last_layers, motion_weight=motion_weight)
        self.folder = Path(encoder)
        try:
            self.description = load_description(self.folder)
        except CheckpointError as error:
            raise ValueError(f"target.args.encoder: {error}") from error
        self.check_depth(self.description.shape)
        self._teacher: tuple[Encoder, ...] = ()  # in a tuple, so that it is not a submodule

    def target_values(self, shape: EncoderShape) -> int:
        return self.description.shape.width

    def bind(self, encoder: Encoder) -> None:
        """See `Target.bind`.

        Raises:
            CheckpointError: the teacher's weights cannot be read.
        """
        own, given = encoder.grid, self.description.grid
        if own != given:
            raise ValueError(
                f"target.args.encoder: expected a teacher with the {_described(own)} of this model, got one "
                f"with {_described(given)} in {self.folder}; fix: choose clip.frames, clip.size and the "
                "patch so that the numbers of tokens are equal"
            )
        is_standardized = self.description.shape.standardize
        if encoder.shape.standardize != is_standardized:
            expected = str(is_standardized).lower()
            raise ValueError(
                f"model.standardize: expected {expected} as in the teacher {self.folder}; fix: "
                f"model.standardize={expected}"
            )
        teacher, _ = load_encoder(self.folder)
        self._teacher = (teacher.requires_grad_(False).eval(),)

    def compute_target(self, inputs: TargetInputs) -> Tensor:
        (teacher,) = self._teacher
        device = inputs.clip_BCTHW.device
        if teacher.patch_embed.weight.device != device:  # at the first call
            teacher.to(device)
        sides = zip((teacher.grid.t, teacher.grid.h, teacher.grid.w), teacher.shape.patch, strict=True)
        frames, height, width = (tokens * side for tokens, side in sides)
        mean, std = self.description.mean, self.description.std
        # Standardized once, as in the teacher's training: its result is clamped.
        clip_BCTHW = inputs.clip_BCTHW if inputs.original_BCTHW is None else inputs.original_BCTHW
        clip_BCTHW = teacher.standardized(resampled(clip_BCTHW, frames, height, width), mean, std)
        return self.features(teacher, clip_BCTHW, inputs.target_BM, mean=mean, std=std)

    def unsaved_bytes(self) -> int:
        return sum(weight.nbytes for teacher in self._teacher for weight in teacher.parameters())


def resampled(clip_BCTHW: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Resample uint8 clips to another size: frames by repeating or leaving out, pixels bilinearly.

    Each token of an equal grid keeps its time and place.
    """
    given = clip_BCTHW.shape[2]
    if given != frames:
        frame_T = torch.arange(frames, device=clip_BCTHW.device) * given // frames
        clip_BCTHW = clip_BCTHW.index_select(2, frame_T)
    if clip_BCTHW.shape[3:] == (height, width):
        return clip_BCTHW
    image_BXHW = clip_BCTHW.flatten(1, 2).float()
    image_BXHW = F.interpolate(image_BXHW, (height, width), mode="bilinear", antialias=True)
    return image_BXHW.round().clamp(0, 255).to(torch.uint8).unflatten(1, (-1, frames))


def _described(grid: TokenGrid) -> str:
    return f"{grid.t}x{grid.h}x{grid.w} tokens"
