"""Ratio jitter: a masking whose ratio changes from step to step."""

from typing import Any

from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import derived_seed
from kinemae.pretrain.masking.base import Masking, StepMasking

FOLDER = "kinemae.pretrain.masking"


class JitterMasking(StepMasking):
    """Varies the ratio, so that the encoder is trained on different numbers of tokens.

    All clips of a step have the same ratio, one of a few levels with equal probability, so only a few shapes
    occur. The ratio is a function of the step. This masking has no published source.

    Args:
        of: name of the masking.
        min_ratio, max_ratio: lowest and highest level; the levels are evenly spaced.
        levels: number of levels.
        args: arguments of the masking without `ratio`.
        seed: seed of the sequence of levels.
    """

    def __init__(
        self,
        *,
        of: str,
        min_ratio: float,
        max_ratio: float,
        levels: int = 3,
        args: dict[str, Any] | None = None,
        seed: int = 0,
    ):
        given = {} if args is None else args
        require(isinstance(given, dict), "masking.args.args", "be that masking's arguments by name", given)
        known = [name for name in component_names(FOLDER) if name not in ("jitter", "mixture")]
        require(of in known, "masking.args.of", f"be one of {', '.join(known)}", of)
        require(
            "ratio" not in given,
            "masking.args.args",
            "not hold ratio, which min_ratio and max_ratio set",
            given,
        )
        bounds = (min_ratio, max_ratio)
        require(0 < min_ratio < max_ratio < 1, "masking.args", "hold 0 < min_ratio < max_ratio < 1", bounds)
        require(levels >= 2, "masking.args.levels", "be at least 2", levels)
        ratios = [min_ratio + (max_ratio - min_ratio) * level / (levels - 1) for level in range(levels)]
        super().__init__(
            [
                build_component(
                    FOLDER, Component(name=of, args={**given, "ratio": ratio}), Masking, key="masking.args"
                )
                for ratio in ratios
            ]
        )
        self.seed = seed

    def at(self, step: int) -> Masking:
        return self.maskings[derived_seed(self.seed, purpose="masking/level", step=step) % len(self.maskings)]
