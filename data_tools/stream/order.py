"""Shuffled order of the samples: a pure function of the seed and the position in the run, without a list.

A run is a sequence of clips, 0, 1, 2, ... A step takes the next `global_clips` of them, for any number of
processes, workers or accumulation steps. So the state of the data stream is the step number.

A mixture of data sets has no epochs: each of its data sets has its own.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from math import gcd

from kinemae.data_tools.randomness import derived_seed

MIXTURE_BLOCK = 1000  # positions in which a mixture has its exact proportions, so these are in thousandths
_MIN_CLASS_QUOTA = 10
_ROUNDS = 8
_MASK_32 = 0xFFFFFFFF


def sample_at(seed: int, epoch: int, i: int, samples: int) -> int:
    """The i-th sample of an epoch.

    For each (seed, epoch) this is a permutation of range(samples): a Feistel network over the next even
    power of two, repeated until the result is in range (Black and Rogaway 2002, https://doi.org/10.1007/3-540-45760-7_9,
    section 4). The cost does not depend on `samples`: about two rounds on average, and no memory.

    Raises:
        ValueError: `i` is not in the epoch.
    """
    if not 0 <= i < samples:
        raise ValueError(f"an epoch of {samples} samples has the positions 0 to {samples - 1}, got {i}")
    half = ((samples - 1).bit_length() + 1) // 2
    keys = _round_keys(seed, epoch)
    place = _feistel(i, half, keys)
    while place >= samples:
        place = _feistel(place, half, keys)
    return place


def place_of(seed: int, epoch: int, sample: int, samples: int) -> int:
    """The inverse of `sample_at`: the place of a sample in an epoch."""
    half = ((samples - 1).bit_length() + 1) // 2
    keys = _round_keys(seed, epoch)
    place = _inverse_feistel(sample, half, keys)
    while place >= samples:
        place = _inverse_feistel(place, half, keys)
    return place


def mixture_quotas(weights: Sequence[float], block: int = MIXTURE_BLOCK) -> tuple[int, ...]:
    """Positions of each data set in a block of a mixture, by the largest remainder method.

    Raises:
        ValueError: a weight is too small for one position.
    """
    total = sum(Fraction(weight) for weight in weights)
    exact = [Fraction(weight) * block / total for weight in weights]
    quotas = [int(quota) for quota in exact]
    by_remainder = sorted(range(len(exact)), key=lambda number: quotas[number] - exact[number])
    for number in by_remainder[: block - sum(quotas)]:
        quotas[number] += 1
    if 0 in quotas:
        raise ValueError(
            f"each weight must be at least 1/{block} of all weights together, "
            f"got {weights[quotas.index(0)]:g} of {float(total):g}"
        )
    return tuple(quotas)


def class_quotas(sizes: Sequence[int], balance: float) -> tuple[int, ...]:
    """Positions of each class in a block of a run that is balanced by class, see `mixture_position`.

    They are proportional to n ** (1 - balance) for a class of n samples. The smallest class has whole epochs
    in a block, and at least ten positions, so that rounding changes no proportion by more than a twentieth.
    """
    smallest = min(sizes)
    epochs = -(-_MIN_CLASS_QUOTA // smallest)
    quotas = [round(epochs * size * (smallest / size) ** balance) for size in sizes]
    return tuple(quota // gcd(*quotas) for quota in quotas)


def mixture_position(
    seed: int, place: int, quotas: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[int, int, int]:
    """(data set, its epoch, position in that epoch) at a position of the run.

    The run is divided into blocks of `sum(quotas)` positions. Each block contains the quotas of all data sets
    in a random order. The positions of a data set in all blocks are numbered consecutively and divided into
    epochs. If an epoch ends within a block, samples of the next epoch may precede its last samples.
    """
    block, slot = divmod(place, sum(quotas))
    slot = sample_at(derived_seed(seed, purpose="mixture"), block, slot, sum(quotas))
    begins = (0, *accumulate(quotas))
    number = next(number for number, end in enumerate(begins[1:]) if slot < end)
    epoch, i = divmod(block * quotas[number] + slot - begins[number], sizes[number])
    return number, epoch, i


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Division of a global batch: `global_clips = world * accumulation * micro_clips`.

    A process has neighbouring clips of a step, so with block order it reads the same partitions in each.
    """

    global_clips: int
    world: int
    micro_clips: int
    accumulation: int

    def clip_range(self, step: int, accumulation_index: int, rank: int) -> range:
        """The clips of a process in one micro-batch of a step."""
        begin = step * self.global_clips + (rank * self.accumulation + accumulation_index) * self.micro_clips
        return range(begin, begin + self.micro_clips)


def plan_batch(
    global_clips: int,
    clips_per_device: int | None,
    world: int,
    views: int,
    *,
    unit: str = "data.views_per_video",
) -> BatchPlan:
    """Divide the global batch into the fewest micro-batches that fit a device.

    Args:
        clips_per_device: the largest micro-batch; None for no limit.
        views: a micro-batch is a multiple of this, so that the views of a video stay together.
        unit: the config key of `views`, for the error.

    Raises:
        ValueError: the numbers do not divide.
    """
    per_process, rest = divmod(global_clips, world)
    if rest == 0 and per_process > 0:
        fewest = 1 if clips_per_device is None else -(-per_process // clips_per_device)
        for accumulation in range(fewest, per_process + 1):
            if per_process % accumulation == 0 and (per_process // accumulation) % views == 0:
                micro_clips = per_process // accumulation
                return BatchPlan(
                    global_clips=global_clips, world=world, micro_clips=micro_clips, accumulation=accumulation
                )
    has_limit = clips_per_device is not None
    limit = f"of at most batch.clips_per_device={clips_per_device} clips " if has_limit else ""
    raise ValueError(
        f"batch.global_clips={global_clips} cannot be shared by {world} processes in equal micro-batches "
        f"{limit}that are multiples of {unit}={views}: "
        f"choose batch.global_clips as a multiple of {world} x {views} = {world * views}"
        + (f" and batch.clips_per_device as at least {views}" if has_limit else "")
    )


def process_counts(plan: Callable[[int], BatchPlan], most: int) -> list[int]:
    """The numbers of processes, at most `most`, that can share the global batch.

    Args:
        plan: divides the batch, and raises a `ValueError` if a number of processes cannot share it.
    """
    counts = []
    for count in range(1, most + 1):
        with suppress(ValueError):
            counts.append(plan(count).world)
    return counts


@lru_cache(maxsize=4096)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(
        derived_seed(seed, purpose="order", step=epoch, sample=number) & _MASK_32 for number in range(_ROUNDS)
    )


def _feistel(place: int, half: int, keys: tuple[int, ...]) -> int:
    """A keyed permutation of the numbers below 4 ** half, each half of at most 32 bits."""
    mask = (1 << half) - 1
    left, right = place >> half, place & mask
    for key in keys:
        left, right = right, left ^ _mixed(right, key) & mask
    return left << half | right


def _inverse_feistel(place: int, half: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half) - 1
    left, right = place >> half, place & mask
    for key in reversed(keys):
        left, right = right ^ _mixed(left, key) & mask, left
    return left << half | right


def _mixed(half: int, key: int) -> int:
    mixed = (half ^ key) * 0x9E3779B1 & _MASK_32
    mixed = (mixed ^ (mixed >> 15)) * 0x85EBCA77 & _MASK_32
    return mixed ^ (mixed >> 13)
