"""Teacher target: features of a frozen encoder on the whole clean clip, at the target tokens."""

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
    """Predicts the layer-normalized features of a frozen teacher with the smooth L1 loss.

    This is the second stage of SALT (arXiv 2509.24317); the first is an ordinary run. The teacher may have
    any size and uses its own normalization of pixels. It is not part of the checkpoints and is loaded at each
    start.

    Args:
        encoder: folder of an exported encoder, such as `RUN/encoder`.
        beta: threshold between squared and linear error.
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
        self._teacher: tuple[Encoder, ...] = ()  # in a tuple, so that it is not a submodule

    def target_values(self, shape: EncoderShape) -> int:
        return self.description.shape.width

    def bind(self, encoder: Encoder) -> None:
        """See `Target.bind`.

        Raises:
            CheckpointError: the teacher's weights cannot be read.
        """
        own = (encoder.grid, encoder.shape.patch)
        given = (self.description.grid, self.description.shape.patch)
        if own != given:
            raise ValueError(
                f"target.args.encoder: expected a teacher on {_described(*own)} as this model, got one on "
                f"{_described(*given)} in {self.folder}; fix: set clip.frames, clip.size and the patch "
                "like the teacher's"
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
        teacher.to(inputs.clip_BCTHW.device)  # moves at the first call
        return clean_features(teacher, inputs, mean=self.description.mean, std=self.description.std)

    def errors(self, prediction_BMP: Tensor, target_BMP: Tensor) -> Tensor:
        return feature_errors(prediction_BMP, target_BMP, beta=self.beta)


def _described(grid: TokenGrid, patch: Patch) -> str:
    return f"{grid.t}x{grid.h}x{grid.w} tokens of {patch[0]} frames at {patch[1]}x{patch[2]} px"
