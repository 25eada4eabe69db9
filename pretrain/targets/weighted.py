"""Weighted sum of several targets."""

from typing import Any

from torch import Tensor, nn

from kinemae.data_tools.weighted_components import build_weighted
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.targets.base import Prediction, Target, TargetInputs


class WeightedTarget(Target):
    """Predicts the values of its parts together, in the order of the config.

    Args:
        parts: {"weight": ..., "args": {...}} by target name: the factor on its loss, 1 by default, and its
            arguments; or a list of names.
    """

    def __init__(self, *, parts: dict[str, Any] | list[str] | str):
        built = build_weighted(
            "kinemae.pretrain.targets", parts, Target, key="target.args.parts", whole="weighted"
        )
        super().__init__()
        self.parts = nn.ModuleDict({name: target for name, (_, target) in built.items()})
        self.weights = {name: weight for name, (weight, _) in built.items()}
        self.needs_noise = any(part.needs_noise for part in self._targets.values())
        self.uses_global_batch = any(part.uses_global_batch for part in self._targets.values())

    @property
    def _targets(self) -> dict[str, Target]:
        return dict(self.parts.items())  # type: ignore[arg-type]

    def target_values(self, shape: EncoderShape) -> int:
        return sum(target.target_values(shape) for target in self._targets.values())

    def visible_values(self, shape: EncoderShape) -> int:
        return sum(target.visible_values(shape) for target in self._targets.values())

    def bind(self, encoder: Encoder) -> None:
        for target in self._targets.values():
            target.bind(encoder)
        self._decoded = [target.target_values(encoder.shape) for target in self._targets.values()]
        self._visible = [target.visible_values(encoder.shape) for target in self._targets.values()]

    def losses(self, prediction: Prediction, inputs: TargetInputs) -> dict[str, Tensor]:
        """See `Target.losses`; the unweighted losses of the parts are "loss/NAME"."""
        decoded = _split(prediction.decoded_BMP, self._decoded)
        visible = _split(prediction.visible_BKP, self._visible)
        found: dict[str, Tensor] = {}
        total_B: Tensor | None = None
        for (name, target), decoded_BMP, visible_BKP in zip(
            self._targets.items(), decoded, visible, strict=True
        ):
            own = target(Prediction(decoded_BMP=decoded_BMP, visible_BKP=visible_BKP), inputs)
            found |= {f"{key}/{name}": value_B for key, value_B in own.items()}
            weighted_B = self.weights[name] * own["loss"]
            total_B = weighted_B if total_B is None else total_B + weighted_B
        assert total_B is not None, "there is at least one part"
        return {"loss": total_B, **found}

    def after_update(self, encoder: Encoder, progress: float) -> None:
        for target in self._targets.values():
            target.after_update(encoder, progress)

    @property
    def follows_progress(self) -> bool:
        return any(target.follows_progress for target in self._targets.values())

    def unsaved_bytes(self) -> int:
        return sum(target.unsaved_bytes() for target in self._targets.values())

    def state_metrics(self, encoder: Encoder) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for target in self._targets.values():
            found |= target.state_metrics(encoder)
        return found

    def to_pixels(self, decoded_BMP: Tensor, inputs: TargetInputs, *, visible_only: bool) -> Tensor | None:
        """See `Target.to_pixels`: the first part that has a picture."""
        for target, values_BMP in zip(
            self._targets.values(), _split(decoded_BMP, self._decoded), strict=True
        ):
            if values_BMP is not None:
                picture_BMP = target.to_pixels(values_BMP, inputs, visible_only=visible_only)
                if picture_BMP is not None:
                    return picture_BMP
        return None


def _split(values: Tensor | None, sizes: list[int]) -> list[Tensor | None]:
    """Predictions of each part, None for a part without any."""
    if values is None:
        return [None] * len(sizes)
    return [part if part.shape[2] else None for part in values.split(sizes, dim=2)]
