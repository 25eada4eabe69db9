"""View target: equal embeddings of global and local views of a clip, without collapse."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom, derived_seed
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.sigreg import Projector, random_directions, sigreg
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.view_crops import draw_crops, draw_tokens, take_crop_patches
from kinemae.pretrain.targets.base import Prediction, Target, TargetInputs, ViewInputs


class ViewTarget(Target):
    """Trains the encoder to give all views of a clip the same embedding, as LeVJEPA does.

    The embedding z is the projected mean of the encoder's tokens. The loss of a clip is

        mean over views of (z - mean z of the global views)^2 + sigreg_weight * SIGReg,

    where SIGReg (LeJEPA, arXiv 2511.08544) is the distance of the embeddings of the global batch to an
    isotropic normal distribution; it prevents collapse. The first global view is the masked clip that the
    encoder encodes anyway, so `masking` drops its tokens. Further views are resized crops on the encoder's
    grid, each with its own noise on patches and tokens; only patches of kept tokens are computed. This target
    needs no decoder. The projector is trained, but not exported.

    Args:
        global_views, local_views: number of views of each kind.
        global_scale, local_scale: range of the area of a crop as a fraction of the clip's.
        local_time: fraction of the slices, successive ones, that a local view contains.
        drop, local_drop: fraction of the tokens that further global views and local views drop.
        sigreg_weight: weight of SIGReg.
        slices: number of random directions of SIGReg.
        knots, t_max: quadrature of its statistic, see `epps_pulley`.
        hidden, width: widths of the projector's hidden layer and of z.
    """

    uses_global_batch = True

    def __init__(  # noqa: PLR0913 - all by name
        self,
        *,
        global_views: int = 1,
        local_views: int = 10,
        global_scale: Sequence[float] = (0.8, 1.0),
        local_scale: Sequence[float] = (0.02, 0.4),
        local_time: float = 1.0,
        drop: float = 0.95,
        local_drop: float = 0.99,
        sigreg_weight: float = 0.02,
        slices: int = 1024,
        knots: int = 17,
        t_max: float = 3.0,
        hidden: int = 2048,
        width: int = 256,
    ):
        super().__init__()
        _check_scales(global_scale=global_scale, local_scale=local_scale)
        for name, value, is_valid, expected in (
            ("global_views", global_views, global_views >= 1, "be at least 1"),
            (
                "local_views",
                local_views,
                local_views >= (global_views == 1),
                "be at least 1 with one global view",
            ),
            ("local_time", local_time, 0 < local_time <= 1, "lie in (0, 1]"),
            ("drop", drop, 0 <= drop < 1, "lie in [0, 1)"),
            ("local_drop", local_drop, 0 <= local_drop < 1, "lie in [0, 1)"),
            ("sigreg_weight", sigreg_weight, sigreg_weight > 0, "be above 0: embeddings collapse without it"),
            ("slices", slices, slices >= 1, "be at least 1"),
            ("knots", knots, knots >= 2, "be at least 2"),
            ("t_max", t_max, t_max > 0, "be above 0"),
            ("hidden", hidden, hidden >= 1, "be at least 1"),
            ("width", width, width >= 1, "be at least 1"),
        ):
            require(is_valid, f"target.args.{name}", expected, value)
        self.local_views, self.local_time, self.sigreg_weight = local_views, local_time, sigreg_weight
        self.crops = (
            ("global", global_views - 1, global_scale, drop),
            ("local", local_views, local_scale, local_drop),
        )
        self.slices, self.knots, self.t_max = slices, knots, t_max
        self.hidden, self.width = hidden, width

    def target_values(self, shape: EncoderShape) -> int:
        return 0

    def bind(self, encoder: Encoder) -> None:
        self.grid = encoder.grid
        self.projector = Projector(encoder.shape.width, self.hidden, self.width)

    def losses(self, prediction: Prediction, inputs: TargetInputs) -> dict[str, Tensor]:
        """See `Target.losses`. Also both terms: "invariance", and "sigreg", which all clips share."""
        views = inputs.views
        assert views is not None
        clips, step_key = views.total(
            torch.stack([views.weight_B.double().sum(), views.draws.clip_index_B.double().sum()])
        ).unbind()
        share_B = (views.weight_B / clips.clamp(min=1)).float()
        x_BVD = self._mean_tokens(inputs, views)
        z_BVD = self.projector(x_BVD, share_B, views.total)
        centre_B1D = z_BVD[:, : x_BVD.shape[1] - self.local_views].mean(dim=1, keepdim=True)
        invariance_B = (z_BVD - centre_B1D).square().mean(dim=(1, 2))
        # A function of the clips of the step, equal on all processes.
        draws = ClipRandom(views.draws.seed, step_key.long().view(1))
        distance = clips.float() * sigreg(
            z_BVD,
            random_directions(draws, self.width, self.slices),
            share_B,
            total=views.total,
            knots=self.knots,
            t_max=self.t_max,
        )
        found = {
            "loss": invariance_B + self.sigreg_weight * distance,
            "invariance": invariance_B,
            "sigreg": distance.expand_as(invariance_B),
        }
        masks = len(views.tokens_BKD) // len(share_B)
        return {name: value_B.repeat_interleave(masks) for name, value_B in found.items()}

    def _mean_tokens(self, inputs: TargetInputs, views: ViewInputs) -> Tensor:
        """Mean of the encoder's tokens for each view, global views first, as x_BVD in float32."""
        tokens = [views.tokens_BKD]
        for name, count, scale, drop in self.crops:
            if count:
                seed = derived_seed(views.draws.seed, purpose=f"views/{name}")
                draws = ClipRandom(seed, views.draws.clip_index_B).for_masks(count)
                slices = max(1, round(self.local_time * self.grid.t)) if name == "local" else self.grid.t
                kept = max(1, round((1 - drop) * slices * self.grid.per_slice))
                index_RK = draw_tokens(draws, self.grid, slices=slices, count=kept)
                crop_R4 = draw_crops(draws, low=scale[0], high=scale[1])
                patches_RKP = take_crop_patches(inputs.clip_BCTHW, crop_R4, index_RK, self.grid, inputs.patch)
                tokens.append(views.encode(patches_RKP, index_RK, draws))
        clips = len(views.weight_B)
        return torch.cat([x_RKD.float().mean(dim=1).unflatten(0, (clips, -1)) for x_RKD in tokens], dim=1)


def _check_scales(**scales: Sequence[float]) -> None:
    for name, scale in scales.items():
        is_pair = isinstance(scale, Sequence) and len(scale) == 2
        is_range = (
            is_pair and all(isinstance(part, float | int) for part in scale) and 0 < scale[0] <= scale[1] <= 1
        )
        require(is_range, f"target.args.{name}", "be two ascending numbers within (0, 1]", scale)
