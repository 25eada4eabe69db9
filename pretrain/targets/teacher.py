"""Teacher target: what a finished, frozen encoder makes of the whole clean clip at the wanted tokens."""

from pathlib import Path

from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.config import require
from kinemae.pretrain.exported_model import load_description, load_encoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import Patch, TokenGrid
from kinemae.pretrain.targets.base import DecoderTarget, TargetInputs
from kinemae.pretrain.targets.features import clean_features, feature_errors


class TeacherTarget(DecoderTarget):
    """Predicts a frozen teacher's layer-normed features under the smooth L1 loss.

    The second stage of SALT (arXiv 2509.24317): the first is an ordinary run, for example of pixels. The
    teacher may be of any size and sees clips as it was trained to (its own mean and deviation). It is not
    part of the checkpoints: a run that goes on reads it again.

    Args:
        encoder: a folder with an exported encoder, as in `RUN/encoder`.
        beta: where the loss turns from square to straight.
    """

    def __init__(self, *, encoder: str, beta: float = 1.0):
        require(beta > 0, "target.args.beta", "be above 0", beta)
        super().__init__()
        self.folder = Path(encoder)
        self.beta = beta
        try:
            self.description = load_description(self.folder)
        except CheckpointError as error:
            raise ValueError(f"target.args.encoder: {error}") from error
        self._held: tuple[Encoder, ...] = ()  # in a tuple PyTorch does not see it: no state, no mode

    def target_values(self, shape: EncoderShape) -> int:
        """See `Target.target_values`."""
        return self.description.shape.width

    def bind(self, encoder: Encoder) -> None:
        """See `Target.bind`.

        Raises:
            CheckpointError: the teacher's weights cannot be read.
        """
        own = (encoder.grid, encoder.shape.patch)
        taught = (self.description.grid, self.description.shape.patch)
        if own != taught:
            raise ValueError(
                f"target.args.encoder: the teacher in {self.folder} cuts clips into {_said(*taught)}, this "
                f"model into {_said(*own)}: clip.frames, clip.size and the patch must be the teacher's"
            )
        teacher, _ = load_encoder(self.folder)
        self._held = (teacher.requires_grad_(False).eval(),)

    def compute_target(self, inputs: TargetInputs) -> Tensor:
        """See `DecoderTarget.compute_target`."""
        (teacher,) = self._held
        teacher.to(inputs.clip_BCTHW.device)  # moves once
        return clean_features(teacher, inputs, mean=self.description.mean, std=self.description.std)

    def errors(self, prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
        """See `DecoderTarget.errors`."""
        return feature_errors(prediction_BMP, target_BMP, beta=self.beta)


def _said(grid: TokenGrid, patch: Patch) -> str:
    return f"{grid.t}x{grid.h}x{grid.w} tokens of {patch[0]} frames at {patch[1]}x{patch[2]} px"
