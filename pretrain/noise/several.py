"""Several noise kinds in sequence."""

from typing import Any

from torch import Tensor

from kinemae.data_tools.components import Component, build_component, named_components
from kinemae.data_tools.config import require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.noise.base import Noise, Strength


class SeveralNoises(Noise):
    """Applies its parts in the order of the config, all at the same level.

    A shared level keeps nearly clean clips as frequent as with one kind, and a noise-conditioned decoder
    needs only one number.

    Args:
        parts: arguments by kind, without `strength`; or a list of kinds.
        strength: see `Strength`.
    """

    def __init__(self, *, parts: dict[str, Any] | list[str] | str, strength: dict[str, Any] | None = None):
        named = named_components(parts, "noise.args.parts", "noise")
        self.parts = [_build(name, args) for name, args in named.items()]
        self.strength = Strength.read(strength)
        self.is_on_patches = any(part.is_on_patches for part in self.parts)

    def on_clip(self, clip_BCTHW: Tensor, level_B: Tensor, draws: ClipRandom) -> Tensor:
        for part in self.parts:
            clip_BCTHW = part.on_clip(clip_BCTHW, level_B, draws)
        return clip_BCTHW

    def on_patches(self, patches_BKP: Tensor, level_B: Tensor, draws: ClipRandom, **where: Any) -> Tensor:
        for part in self.parts:
            patches_BKP = part.on_patches(patches_BKP, level_B, draws, **where)
        return patches_BKP

    def on_tokens(self, x_BKD: Tensor, level_B: Tensor, draws: ClipRandom) -> Tensor:
        for part in self.parts:
            x_BKD = part.on_tokens(x_BKD, level_B, draws)
        return x_BKD


def _build(name: str, args: Any) -> Noise:
    key = f"noise.args.parts.{name}"
    require(name not in ("several", "none"), key, "be a noise that is neither several nor none", name)
    require(isinstance(args, dict), key, "hold the kind's arguments, {} for the defaults", args)
    try:
        noise = build_component("kinemae.pretrain.noise", Component(name=name, args=args), Noise)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    require(
        noise.strength == Strength(),
        key,
        "have no strength of its own: all parts share noise.args.strength",
        args,
    )
    return noise
