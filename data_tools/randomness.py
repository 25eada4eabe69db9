"""Random numbers as a function of (seed, purpose, step, sample), never of history.

A resumed run, and a run on another number of processes, draw the same numbers.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF
_ONES_23 = 0x7FFFFF
_MASK_BIT = 40  # of a clip index; the bits from here on number its masks or views


def derived_seed(seed: int, *, purpose: str, step: int = 0, sample: int = 0) -> int:
    """Hash the arguments to a 63-bit seed; different arguments give unrelated seeds."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, *, purpose: str, step: int = 0, sample: int = 0) -> torch.Generator:
    """Make a CPU generator from the arguments.

    Args:
        seed: the run's seed.
        purpose: use of the numbers, such as "masking".
        step: the optimizer step, for numbers of a step.
        sample: the clip's index in the run, for numbers of a clip.
    """
    fresh = torch.Generator()
    fresh.manual_seed(derived_seed(seed, purpose=purpose, step=step, sample=sample))
    return fresh


class ClipRandom:
    """Random numbers for a batch of clips, on their device. Each row depends on its clip only.

    A hash of a counter (32-bit finalizer of MurmurHash3) gives each value. One vectorized call replaces one
    generator per clip, without a loop or a host synchronization.
    """

    def __init__(self, seed: int, clip_index_B: Tensor):
        self.seed = seed
        self.clip_index_B = clip_index_B

    def for_masks(self, masks: int) -> "ClipRandom":
        """Rows for this many masks or views of each clip, in order; the first has the clip's own numbers."""
        mask_X = torch.arange(masks, device=self.clip_index_B.device) << _MASK_BIT
        return ClipRandom(self.seed, (self.clip_index_B[:, None] + mask_X).flatten())

    def uniform(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Uniform values in the open interval (0, 1), float32 of shape (B, *shape)."""
        bits_BX = self._bits(purpose, math.prod(shape))
        # 23 bits: with 24, float32 rounds the largest value up to 1.
        top_BX = (bits_BX >> 9).bitwise_and_(_ONES_23)
        return top_BX.float().add_(0.5).mul_(1.0 / (1 << 23)).view(len(bits_BX), *shape)

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal values, float32 of shape (B, *shape), by the Box-Muller transform."""
        count = math.prod(shape)
        radius_BX = self.uniform(f"{purpose}/radius", (count,)).log_().mul_(-2.0).sqrt_()
        angle_BX = self.uniform(f"{purpose}/angle", (count,)).mul_(2.0 * math.pi)
        return radius_BX.mul_(angle_BX.cos_()).view(-1, *shape)

    def _bits(self, purpose: str, count: int) -> Tensor:
        """Hashed counters, int32 of shape (B, count) with 32 random bits each."""
        clip_B = self.clip_index_B
        key = derived_seed(self.seed, purpose=purpose)
        low_B = _mix_((clip_B ^ key).bitwise_and_(_MASK_32).to(torch.int32))
        row_B1 = _mix_(low_B ^ (clip_B >> 32 ^ key >> 32).to(torch.int32))[:, None]
        column_X = torch.arange(count, dtype=torch.int32, device=clip_B.device) * _signed(0x9E3779B9)
        # Two rounds: after one, rows with similar keys are correlated.
        return _mix_(_mix_(row_B1 + column_X).bitwise_xor_(row_B1))


def _mix_(bits: Tensor) -> Tensor:
    """The 32-bit finalizer of MurmurHash3, in place on an int32 tensor.

    Signed, because torch.uint32 lacks most operations and int64 is five times slower. Products wrap to the
    same bits; masks remove the sign bits of right shifts.
    """
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
    bits.mul_(_signed(0x85EBCA6B))
    bits.bitwise_xor_((bits >> 13).bitwise_and_(0x7FFFF))
    bits.mul_(_signed(0xC2B2AE35))
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))


def _signed(bits: int) -> int:
    """Reinterpret 32 bits as int32."""
    return bits - (1 << 32) if bits >> 31 else bits
