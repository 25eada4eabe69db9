"""SIGReg: distance of embeddings to an isotropic normal distribution (LeJEPA, arXiv 2511.08544).

All statistics cover the clips of all processes, with their gradients. `share_B` is the weight of a clip in a
mean over them: it sums to 1 over all clips of all processes.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.model.blocks import init_weights

NORM_EPS = 1e-5

Total = Callable[[Tensor], Tensor]
"""Sum of a tensor over all processes, with its gradient."""


def one_process(values: Tensor) -> Tensor:
    """The `Total` of a single process."""
    return values


class Projector(nn.Module):
    """Linear layer, batch norm, GELU and linear layer, as in LeVJEPA.

    Batch norm (arXiv 1502.03167) always uses the statistics of the global batch: the projector is not used
    after training.
    """

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.scale = nn.Parameter(torch.ones(hidden))
        self.shift = nn.Parameter(torch.zeros(hidden))
        self.fc2 = nn.Linear(hidden, out)
        init_weights(self)

    def forward(self, x_BVD: Tensor, share_B: Tensor, total: Total) -> Tensor:
        """Project each view of each clip, as z_BVD in float32."""
        share_B11 = share_B[:, None, None] / x_BVD.shape[1]
        x_BVD = self.fc1(x_BVD).float()
        x_BVD = x_BVD - total((share_B11 * x_BVD).sum(dim=(0, 1)))
        variance_D = total((share_B11 * x_BVD.square()).sum(dim=(0, 1)))
        x_BVD = x_BVD * (variance_D + NORM_EPS).rsqrt() * self.scale + self.shift
        return self.fc2(F.gelu(x_BVD)).float()


def random_directions(draws: ClipRandom, width: int, slices: int) -> Tensor:
    """Directions of length 1 from the draws of a single row, as slice_DX."""
    slice_DX = draws.normal("sigreg", (width, slices))[0]
    return slice_DX / slice_DX.norm(dim=0)


def sigreg(
    z_BVD: Tensor, slice_DX: Tensor, share_B: Tensor, *, total: Total, knots: int, t_max: float
) -> Tensor:
    """The mean of `epps_pulley` over slices and views, a scalar.

    Args:
        z_BVD: embeddings in float32.
    """
    # Autocast would round the product to bfloat16. The meta device has none.
    device = z_BVD.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        x_BVX = z_BVD @ slice_DX
    return epps_pulley(x_BVX, share_B, total=total, knots=knots, t_max=t_max).mean()


def epps_pulley(x_BVX: Tensor, share_B: Tensor, *, total: Total, knots: int, t_max: float) -> Tensor:
    """Epps-Pulley statistic of the clips against N(0, 1), divided by their number, for each column as (V, X).

    The integral of |phi_x(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) over [-t_max, t_max], phi_x being the empirical
    characteristic function. The trapezoidal rule uses `knots` values of t from 0 to t_max, and symmetry, as
    the authors' code does (the paper integrates over [-5, 5]). For N normal samples the expected value is
    1.05 / N.
    """
    step = t_max / (knots - 1)
    # Without t = 0, where both functions are 1.
    t_K = step * torch.arange(1, knots, device=x_BVX.device)
    normal_K = (-t_K.square() / 2).exp()
    angle_BVXK = x_BVX[..., None] * t_K
    share_B111 = share_B[:, None, None, None]
    parts = [(share_B111 * wave).sum(dim=0) for wave in (angle_BVXK.cos(), angle_BVXK.sin())]
    real_VXK, imaginary_VXK = total(torch.stack(parts)).unbind()
    error_VXK = (real_VXK - normal_K).square() + imaginary_VXK.square()
    quadrature_K = torch.full_like(t_K, 2 * step)
    quadrature_K[-1] = step
    return (error_VXK * normal_K * quadrature_K).sum(dim=2)
