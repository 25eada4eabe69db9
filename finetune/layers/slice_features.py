"""Layers of heads that compute values over time: pooling of each time slice, and blocks over the slices.

Letters besides those of `model/tokens.py`: t time slices of a clip, W width of the head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.config import require
from kinemae.finetune.heads.base import Features, Standardize, input_norm


class SlicePool(nn.Module):
    """Pool the tokens of each time slice, and normalize the result.

    Args:
        pool: "mean", or "attention": a weighted mean by a learned query, initially the plain mean.
        norm: "layer", or "standardize": subtract a mean and divide by a standard deviation, both measured
            once on training clips.
    """

    def __init__(self, width: int, *, pool: str, norm: str):
        super().__init__()
        require(pool in ("mean", "attention"), "head.args.pool", "be mean or attention", pool)
        self.query: nn.Module | None = None
        if pool == "attention":
            query = nn.Linear(width, 1, bias=False)
            nn.init.zeros_(query.weight)
            self.query = nn.Sequential(nn.LayerNorm(width, eps=1e-6), query)
        self.needs_calibration = norm == "standardize"
        self.norm = input_norm(norm, width)

    def calibrate(self, features: Features) -> None:
        """Measure the pooled slices, see `Head.calibrate`."""
        if isinstance(self.norm, Standardize):
            self.norm.measure(self.pooled(features).flatten(0, 1))

    def pooled(self, features: Features) -> Tensor:
        """Pool without the norm."""
        assert features.slices > 0, "TaskModel rejects pruning and merging with such a head"
        tokens_BtSD = features.tokens_BND.unflatten(1, (features.slices, -1))
        if self.query is None:
            return tokens_BtSD.mean(dim=2)
        weight_BtS1 = self.query(tokens_BtSD).softmax(dim=2)
        return (weight_BtS1 * tokens_BtSD).sum(dim=2)

    def forward(self, features: Features) -> Tensor:
        return self.norm(self.pooled(features))


class ConvolutionBlock(nn.Module):
    """Residual block over time: norm, convolution, GELU, pointwise convolution."""

    def __init__(self, width: int, *, kernel: int, dilation: int = 1):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        padding = dilation * (kernel // 2)
        self.conv1 = nn.Conv1d(width, width, kernel, padding=padding, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x_BtW: Tensor) -> Tensor:
        x_BWt = self.conv2(functional.gelu(self.conv1(self.norm(x_BtW).mT)))
        return x_BtW + x_BWt.mT


class AttentionBlock(nn.Module):
    """Transformer block over time: each slice attends to the slices at most `reach` away.

    A bias per attention head for every distance makes it depend on the order of the slices.
    """

    def __init__(self, width: int, *, reach: int, head_width: int = 32):
        super().__init__()
        divides = width % head_width == 0
        require(divides, "head.args.hidden_width", f"be a multiple of {head_width} for attention", width)
        self.reach = reach
        self.heads = width // head_width
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.bias_AX = nn.Parameter(torch.zeros(self.heads, 2 * reach + 1))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BtW: Tensor) -> Tensor:
        batch, slices, _ = x_BtW.shape
        q_BAtF, k_BAtF, v_BAtF = (
            self.qkv(self.norm1(x_BtW)).view(batch, slices, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        attended_BAtF = functional.scaled_dot_product_attention(
            q_BAtF, k_BAtF, v_BAtF, attn_mask=self._bias(slices).to(q_BAtF.dtype)
        )
        x_BtW = x_BtW + self.proj(attended_BAtF.transpose(1, 2).reshape(x_BtW.shape))
        return x_BtW + self.mlp(self.norm2(x_BtW))

    def _bias(self, slices: int) -> Tensor:
        """Bias of every pair of slices, (A, t, t): minus infinity beyond the reach."""
        position_t = torch.arange(slices, device=self.bias_AX.device)
        distance_tt = position_t[None, :] - position_t[:, None]
        number_tt = distance_tt.clamp(-self.reach, self.reach) + self.reach
        is_far_tt = distance_tt.abs() > self.reach
        return self.bias_AX[:, number_tt].masked_fill(is_far_tt, -torch.inf)


def time_block(kind: str, width: int, *, kernel: int, dilation: int = 1) -> nn.Module:
    """Build a block of a kind: "convolution", or "attention" with the reach of that convolution."""
    require(kind in ("convolution", "attention"), "head.args.block", "be convolution or attention", kind)
    require(kernel >= 3 and kernel % 2 == 1, "head.args.kernel", "be an odd number of at least 3", kernel)
    if kind == "convolution":
        return ConvolutionBlock(width, kernel=kernel, dilation=dilation)
    return AttentionBlock(width, reach=dilation * (kernel // 2))


def hidden_width_of(hidden_width: int | None, width: int) -> int:
    """Return the width of the blocks; null is the encoder's."""
    is_width = hidden_width is None or (isinstance(hidden_width, int) and hidden_width > 0)
    require(is_width, "head.args.hidden_width", "be null or above 0", hidden_width)
    return hidden_width or width
