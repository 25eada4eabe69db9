"""Random order: each epoch is a permutation of the whole data set."""

from kinemae.data_tools.orders.base import Order, OrderFacts
from kinemae.data_tools.stream.order import sample_at


class RandomOrder(Order):
    """A permutation of all samples. It mixes best, and each sample is a read of its own."""

    def position(self, seed: int, epoch: int, i: int, facts: OrderFacts) -> int:
        return sample_at(seed, epoch, i, facts.samples)
