"""Block order: blocks of neighbouring samples in random order, samples in random order within a window.

The data set is divided into contiguous partitions. Each step takes equally many samples of each partition,
and its positions are ordered by partition. A process reads a contiguous part of each step, so a node reads
the same partitions in all epochs, and its cache keeps its value.

In each epoch the blocks of a partition are permuted. Windows of successive blocks are permuted within. The
samples of an epoch that fill no whole step come from the ends of all partitions. Every value is computed in
constant time and memory.
"""

from typing import ClassVar

from kinemae.data_tools.config import require
from kinemae.data_tools.orders.base import Block, Order, OrderFacts
from kinemae.data_tools.randomness import derived_seed
from kinemae.data_tools.stream.order import place_of, sample_at
from kinemae.data_tools.stream.setting_names import CONFIG_KEYS, SettingNames

_MIN_WINDOW = 2  # blocks of a partition


class BlockOrder(Order):
    """Permuted blocks of neighbouring samples, mixed within a window.

    Args:
        block_mb: size of a block in megabytes: the unit of sequential reads.
        window: number of blocks that are mixed at a time, over all partitions; each partition has at least 2.
        partitions: contiguous parts of the data set; it must divide the videos of a step. At most so many
            nodes read disjoint parts. None: the largest divisor that is at most half of `window`.
    """

    is_local: ClassVar[bool] = True

    def __init__(self, *, block_mb: float = 64.0, window: int = 64, partitions: int | None = None):
        self.block_mb = block_mb
        self.window = window
        self.partitions = partitions

    def check_arguments(self, key: str) -> None:
        require(self.block_mb > 0, f"{key}.block_mb", "be above 0", self.block_mb)
        require(self.window >= 2, f"{key}.window", "be at least 2", self.window)
        is_count = self.partitions is None or (type(self.partitions) is int and self.partitions >= 1)
        require(is_count, f"{key}.partitions", "be null, or an integer from 1 on", self.partitions)

    def check(self, facts: OrderFacts, names: SettingNames = CONFIG_KEYS) -> None:
        step, partitions = facts.videos_per_step, self._partitions(facts)
        if step % partitions:
            key = f"{names.order}.args.partitions"
            raise ValueError(
                f"{key}: expected a divisor of the {step} videos of a step ({names.step_videos}; 1 in a "
                f"mixture), got {partitions}; fix: {key}={_largest_divisor(step, partitions)}, or null"
            )

    def position(self, seed: int, epoch: int, i: int, facts: OrderFacts) -> int:
        partition, j = self._place(epoch, i, facts)
        first, size = self._part(partition, facts)
        window = self._window_samples(facts)
        # Partitions begin new windows at different steps, so that their first reads do not coincide.
        j = (j + partition * window // self._partitions(facts)) % size
        key = derived_seed(seed, purpose="order/blocks", sample=partition)
        return first + _shuffled(key, epoch, j, size, self._block_samples(facts), window)

    def block(self, position: int, facts: OrderFacts) -> Block:
        size, larger = divmod(facts.samples, self._partitions(facts))
        # The first `larger` partitions have one sample more.
        partition = max(position // (size + 1), (position - larger) // max(size, 1))
        partition = min(partition, self._partitions(facts) - 1)
        first, size = self._part(partition, facts)
        samples = self._block_samples(facts)
        begin = first + (position - first) // samples * samples
        window = self._partitions(facts) * self._window_samples(facts) * facts.bytes_per_sample
        return Block(range(begin, min(begin + samples, first + size)), round(window))

    def _partitions(self, facts: OrderFacts) -> int:
        if self.partitions is not None:
            return self.partitions
        return _largest_divisor(facts.videos_per_step, self.window // 2)

    def _block_samples(self, facts: OrderFacts) -> int:
        return max(round(self.block_mb * 1e6 / facts.bytes_per_sample), 1)

    def _window_samples(self, facts: OrderFacts) -> int:
        """Samples of a window of one partition."""
        return max(self.window // self._partitions(facts), _MIN_WINDOW) * self._block_samples(facts)

    def _part(self, partition: int, facts: OrderFacts) -> tuple[int, int]:
        """First position and size of a partition; sizes differ by at most one."""
        size, larger = divmod(facts.samples, self._partitions(facts))
        return partition * size + min(partition, larger), size + (partition < larger)

    def _place(self, epoch: int, i: int, facts: OrderFacts) -> tuple[int, int]:
        """Partition of the i-th sample of an epoch, and its number among the samples of that partition."""
        samples, step, partitions = facts.samples, facts.videos_per_step, self._partitions(facts)
        begin = epoch * samples
        first_step, end_step = -(-begin // step), (begin + samples) // step
        whole, share = max(end_step - first_step, 0), step // partitions
        number, slot = divmod(begin + i, step)
        if first_step <= number < end_step:
            partition, slot = divmod(slot, share)
            return partition, (number - first_step) * share + slot
        # The rest of each partition fills the steps that epochs share: first the last step, then the first.
        head = first_step * step - begin if whole else 0
        in_whole = whole * step
        rest = i - head - in_whole if i >= head else samples - head - in_whole + i
        size, larger = divmod(samples, partitions)
        left = size - whole * share
        if rest < larger * (left + 1):
            partition, j = divmod(rest, left + 1)
        else:
            partition, j = divmod(rest - larger * (left + 1), left)
            partition += larger
        return partition, whole * share + j


def _shuffled(key: int, epoch: int, j: int, size: int, block: int, window: int) -> int:
    """Map j to another number below `size`: permuted blocks, permuted windows of blocks.

    Args:
        block: samples of a block; the last block of the partition may be shorter.
        window: samples of a window, a multiple of `block`; the last window may have up to twice as many.
    """
    blocks, per_window = -(-size // block), window // block
    windows = max(blocks // per_window, 1)
    missing = blocks * block - size
    at = place_of(key, epoch, blocks - 1, blocks)  # of the shorter block
    shorter = min(at // per_window, windows - 1)  # its window
    end = blocks * block if shorter == windows - 1 else (shorter + 1) * window
    number = min((j if j < end - missing else j + missing) // window, windows - 1)
    begin = number * window - (missing if number > shorter else 0)
    stop = blocks * block if number == windows - 1 else (number + 1) * window
    length = stop - number * window - (missing if number == shorter else 0)
    i = sample_at(derived_seed(key, purpose="order/window", sample=number), epoch, j - begin, length)
    if number == shorter and i >= (at - number * per_window + 1) * block - missing:
        i += missing
    row, inside = divmod(i, block)
    return sample_at(key, epoch, number * per_window + row, blocks) * block + inside


def _largest_divisor(number: int, limit: int) -> int:
    return next(each for each in range(min(number, limit), 0, -1) if number % each == 0)
