"""Interface of orders: the sequence in which the samples of a data set are read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from kinemae.data_tools.components import Component, build_component
from kinemae.data_tools.stream.setting_names import CONFIG_KEYS, SettingNames


@dataclass(frozen=True, kw_only=True)
class OrderFacts:
    """Properties of a data set and a run on which an order depends.

    Attributes:
        samples: number of samples of the data set.
        bytes_per_sample: mean size of a sample in its shard.
        videos_per_step: samples of one step of all processes; 1 for a data set of a mixture, whose number of
            samples differs from step to step.
    """

    samples: int
    bytes_per_sample: float
    videos_per_step: int


class Block(NamedTuple):
    """Neighbouring samples that are read soon after each other.

    Attributes:
        positions: of the samples.
        window_bytes: size of all blocks that are read at a time, by all processes.
    """

    positions: range
    window_bytes: int


class Order(ABC):
    """A permutation of the samples for each epoch. It depends on the arguments only and has no state.

    Attributes:
        is_local: whether neighbours are read together, which needs a single data set without weights.
    """

    is_local: ClassVar[bool] = False

    @abstractmethod
    def position(self, seed: int, epoch: int, i: int, facts: OrderFacts) -> int:
        """The position in the data set of the i-th sample of an epoch."""

    def block(self, position: int, facts: OrderFacts) -> Block | None:
        """The block of a position; None if neighbours are not read together."""
        return None

    def check_arguments(self, key: str) -> None:  # noqa: B027 - optional
        """Check the arguments, whose names follow `key` in errors.

        Raises:
            ValueError: an invalid argument.
        """

    def check(self, facts: OrderFacts, names: SettingNames = CONFIG_KEYS) -> None:  # noqa: B027 - optional
        """Check the arguments against a run.

        Raises:
            ValueError: the order cannot be used; the message names the setting.
        """


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """An order of one data set in one run.

    Attributes:
        other_window_bytes: size of the blocks that are read at a time of the other data sets of a mixture.
    """

    order: Order
    facts: OrderFacts
    other_window_bytes: int = 0

    def position(self, seed: int, epoch: int, i: int) -> int:
        """See `Order.position`."""
        return self.order.position(seed, epoch, i, self.facts)

    def block(self, position: int) -> Block | None:
        """See `Order.block`."""
        block = self.order.block(position, self.facts)
        if block is None:
            return None
        return block._replace(window_bytes=block.window_bytes + self.other_window_bytes)


SourceOrder = SampleOrder | tuple[SampleOrder, ...] | None
"""The order of a data set, or of each data set of a mixture; None for random order."""


def build_order(component: Component, *, key: str = CONFIG_KEYS.order) -> Order:
    """Build an order.

    Args:
        key: of the component, for errors.

    Raises:
        ValueError: no such order, or an invalid argument.
    """
    order = build_component("kinemae.data_tools.orders", component, Order, key=key)
    order.check_arguments(f"{key}.args")
    return order
