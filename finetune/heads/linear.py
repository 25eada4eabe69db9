"""Linear head: pooled tokens, a norm and one linear layer."""

from torch import Tensor, nn

from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.heads.base import (
    Features,
    Head,
    Standardize,
    drop_values,
    input_norm,
    pool_tokens,
)


class LinearHead(Head):
    """Mean pooling, norm and linear layer as in VideoMAE's fine-tuning (arXiv 2203.12602).

    Args:
        width: values per token.
        outputs: number of values per clip, for example classes.
        pool: "mean": the mean of the tokens. "statistics": the mean and the standard deviation of the tokens,
            concatenated (as in speaker recognition, Snyder et al. 2018). Motion can show in the differences
            between tokens where their mean is uninformative. Meant for frozen encoders. "slices": the means
            of equal parts of the clip's time, concatenated, so that the order of events counts.
        slices: number of these parts; it divides the number of time slices.
        norm: "layer": a layer norm, as in VideoMAE. "standardize": subtract a mean and divide by a standard
            deviation, both measured once on training clips. The pooled tokens of a masked autoencoder differ
            little between clips, and few labels cannot amplify the difference through a layer norm in time.
            MAE's linear probe (arXiv 2111.06377, A.1) uses a batch norm here, whose statistics would depend
            on the number of processes.
        dropout: fraction of the pooled values set to zero in training.
        init_std: standard deviation of the initial linear weights. Small, so that the first steps change a
            pretrained encoder little: VideoMAE draws with 0.02 and scales by 0.001.
    """

    def __init__(  # noqa: PLR0913 - keyword-only
        self,
        *,
        width: int,
        outputs: int,
        pool: str = "mean",
        slices: int = 0,
        norm: str = "layer",
        dropout: float = 0.0,
        init_std: float = 2e-5,
    ):
        super().__init__()
        widths = {"mean": width, "statistics": 2 * width, "slices": slices * width}
        require(pool in widths, "head.args.pool", "be mean, statistics or slices", pool)
        is_right = slices >= 1 if pool == "slices" else slices == 0
        require(is_right, "head.args.slices", "be at least 1 with pool=slices, and 0 without it", slices)
        require(0 <= dropout < 1, "head.args.dropout", "lie in [0, 1)", dropout)
        require(init_std >= 0, "head.args.init_std", "be 0 or more", init_std)
        self.dropout = dropout
        self.pool = pool
        self.slices = slices
        self.needs_slices = pool == "slices"
        self.needs_calibration = norm == "standardize"
        self.norm = input_norm(norm, widths[pool])
        self.linear = nn.Linear(widths[pool], outputs)
        nn.init.trunc_normal_(self.linear.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
        nn.init.zeros_(self.linear.bias)

    def calibrate(self, features: Features) -> None:
        if isinstance(self.norm, Standardize):
            self.norm.measure(pool_tokens(features, self.pool, slices=self.slices))

    def forward(self, features: Features, draws: ClipRandom | None) -> Tensor:
        pooled_BD = self.norm(pool_tokens(features, self.pool, slices=self.slices))
        return self.linear(drop_values(pooled_BD, self.dropout, draws, purpose="head/dropout"))
